//! Compiles the test kernels as the project's own are compiled: for the emulator (build/host.rs) and, if there is an nvcc, for Hopper.
use std::path::{Path, PathBuf};

#[path = "../../../build/host.rs"]
mod host;
#[path = "../../../build/nvcc.rs"]
mod nvcc;

const KERNELS: nvcc::Kernels = nvcc::Kernels {
    folders: &[("kernels", "", nvcc::SM90_TARGETS)],
    include: "../../include",
    watched: &["kernels", "../../include", "../cpp", "../../../build"],
};

fn main() {
    let Some(out) = std::env::var_os("OUT_DIR").map(PathBuf::from) else {
        println!("cargo::error=cargo sets no OUT_DIR");
        return;
    };
    let kernels = host::kernels(Path::new("kernels"));
    host::compile("sdrrl_emulator_test_kernels", &kernels, Path::new("../../include"), &out);
    nvcc::compile(&KERNELS, &out);
}
