//! Compiles every kernel twice: by nvcc for GPUs, if there is one, and by the host compiler for the emulator.
use std::path::{Path, PathBuf};

#[path = "build/host.rs"]
mod host;
#[path = "build/nvcc.rs"]
mod nvcc;

fn main() {
    let Some(out) = std::env::var_os("OUT_DIR").map(PathBuf::from) else {
        println!("cargo::error=cargo sets no OUT_DIR");
        return;
    };
    host::compile("sdrrl_kernels", &host::kernels(Path::new("kernels")), Path::new("kernels/include"), &out);
    nvcc::compile(&out);
}
