//! Compiles the test kernels as the project's own are compiled (build/host.rs).
use std::path::{Path, PathBuf};

#[path = "../../../build/host.rs"]
mod host;

fn main() {
    let Some(out) = std::env::var_os("OUT_DIR").map(PathBuf::from) else {
        println!("cargo::error=cargo sets no OUT_DIR");
        return;
    };
    for folder in ["kernels", "../../include", "../cpp", "../../../build/host.rs"] {
        println!("cargo::rerun-if-changed={folder}");
    }
    let kernels = host::kernels(Path::new("kernels"));
    host::compile("sdrrl_emulator_test_kernels", &kernels, Path::new("../../include"), &out);
}
