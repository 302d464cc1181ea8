//! Compiles every kernel twice: by nvcc for GPUs, if there is one, and by the host compiler for the emulator. Its launch function in Rust comes from
//! its signature.
use std::path::{Path, PathBuf};

#[path = "build/bindings/mod.rs"]
mod bindings;
#[path = "build/host.rs"]
mod host;
#[path = "build/nvcc.rs"]
mod nvcc;

/// Ampere and Hopper machine code, and PTX that the driver can translate for every later GPU.
const COMMON_TARGETS: &[&str] = &[
    "-gencode=arch=compute_80,code=sm_80",
    "-gencode=arch=compute_90a,code=sm_90a",
    "-gencode=arch=compute_80,code=compute_80",
];

const KERNELS: nvcc::Kernels = nvcc::Kernels {
    folders: &[("kernels", "", COMMON_TARGETS), ("kernels/sm90", "sm90/", nvcc::SM90_TARGETS)],
    include: "kernels/include",
    watched: &["build", "kernels"],
};

fn main() {
    let Some(out) = std::env::var_os("OUT_DIR").map(PathBuf::from) else {
        println!("cargo::error=cargo sets no OUT_DIR");
        return;
    };
    let kernels = host::kernels(Path::new("kernels"));
    if let Err(errors) = bind(&kernels, &out.join("bindings.rs")) {
        errors.iter().flat_map(|e| e.lines()).for_each(|line| println!("cargo::error={line}"));
        // What makes cargo run this again is printed by the other half.
        KERNELS.watched.iter().for_each(|path| println!("cargo::rerun-if-changed={path}"));
        return;
    }
    host::compile("sdrrl_kernels", &kernels, Path::new("kernels/include"), &out);
    nvcc::compile(&KERNELS, &out);
}

/// Writes the launch functions of all kernels to `to`; all files' errors at once.
fn bind(kernels: &[PathBuf], to: &Path) -> Result<(), Vec<String>> {
    let (mut sources, mut errors) = (vec![], vec![]);
    for file in kernels {
        let name = file.with_extension("");
        let unit = name.strip_prefix("kernels").unwrap_or(&name).to_string_lossy().into_owned();
        match preprocessed(file).map(|text| bindings::parse(&unit, &text)) {
            Ok(Ok(source)) => sources.push(source),
            Ok(Err(error)) => errors.push(error.to_string()),
            Err(error) => errors.push(format!("{}: {error}", file.display())),
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    let text = bindings::generate(&sources).map_err(|e| vec![e.to_string()])?;
    std::fs::write(to, text).map_err(|e| vec![format!("write {}: {e}", to.display())])
}

/// A kernel file after the host compiler's preprocessor, with the macros that bindings.rs reads.
fn preprocessed(file: &Path) -> Result<String, String> {
    let compiler =
        cc::Build::new().cpp(true).cargo_metadata(false).try_get_compiler().map_err(|e| e.to_string())?;
    let mut command = compiler.to_command();
    command.args(["-E", "-xc++", "-std=c++17", "-DSDRRL_SIGNATURES", "-Ikernels/include"]).arg(file);
    let done = command.output().map_err(|e| format!("run {command:?}: {e}"))?;
    match done.status.success() {
        true => Ok(String::from_utf8_lossy(&done.stdout).into_owned()),
        false => Err(String::from_utf8_lossy(&done.stderr).into_owned()),
    }
}
