//! Compiles the runtime; tells dependents where the headers are (`DEP_SDRRL_EMULATOR_INCLUDE`).
fn main() {
    println!("cargo::rerun-if-changed=cpp");
    let root = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_else(|_| ".".into());
    println!("cargo::metadata=include={root}/cpp");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .opt_level(2)
        .flag("-fno-strict-aliasing")
        .flag("-Wno-psabi")
        .include("cpp")
        .files(
            ["scheduler", "launch", "buffers", "checks", "profile", "async", "tensor", "registers"]
                .map(|f| format!("cpp/{f}.cpp")),
        )
        .compile("sdrrl_emulator_runtime");
    println!("cargo::rustc-link-lib=dl");
}
