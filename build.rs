//! Compiles every kernel twice: by nvcc for GPUs, if there is one, and by the host compiler for the emulator.
use std::path::{Path, PathBuf};

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
    without: "this is a CPU-only build, `--device cuda` will not work",
};

fn main() {
    let Some(out) = std::env::var_os("OUT_DIR").map(PathBuf::from) else {
        println!("cargo::error=cargo sets no OUT_DIR");
        return;
    };
    host::compile("sdrrl_kernels", &host::kernels(Path::new("kernels")), Path::new("kernels/include"), &out);
    nvcc::compile(&KERNELS, &out);
}
