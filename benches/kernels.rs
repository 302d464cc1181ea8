//! Every kernel on the shapes of real models.
//!
//! `cargo bench --bench kernels`: matrix products on the CPU beside the `gemm` crate.
//! `cargo bench --bench kernels -- --device cuda [--json FILE] [NAME ..]`: the table of GPU rows (`tests/kernels/table`). A row's results are held to
//! the CPU's before its time is taken; memory-bound rows find the L2 cache flushed; ceilings (a copy, our best matrix product) are
//! measured in the same run. FILE gets a line of JSON as each row ends.
//! `.. --once ROW`: that row twice, the second time inside a profiler's range: `ncu --profile-from-start off bench-kernels --device cuda --once "add 8192x4096 bf16"`.
//! `cargo bench --bench kernels -- --list`: the rows as lines of JSON, for scripts/peer_kernels.py; runs nothing.
//! `cargo bench --bench kernels -- --smoke [--device D] [--json FILE]`: the same rows with tiny shapes, on the emulated device unless said otherwise: checks, no times.
use std::process::ExitCode;

use clap::Parser;
use gpu::How;
use options::{given, options};
use sdrrl::{device::DeviceChoice, stages::bench};

mod card;
#[path = "kernels/cpu_gemm.rs"]
mod cpu_gemm;
#[path = "kernels/gpu.rs"]
mod gpu;
mod options;
#[path = "../tests/kernels/table/mod.rs"]
mod table;

/// What is run.
#[derive(Parser)]
struct Options {
    #[command(flatten)]
    of: bench::Kernels,
    /// Tiny shapes, checks and no times, on the emulated device unless said otherwise
    #[arg(long)]
    smoke: bool,
    /// A row twice, the second time inside a profiler's range
    #[arg(long)]
    once: bool,
    /// Cargo's
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let (Options { of, smoke, once, .. }, matches) = options::<Options>(&[
        ("warmup", "each row chooses its own runs"),
        ("runs", "each row chooses its own runs"),
        ("compare", "results of two runs are lines of JSON: scripts/gpu_report.py joins them"),
        ("dtype", "the rows name their types"),
        ("base_dtype", "the rows name their formats"),
        ("activations", "the rows name their formats"),
    ]);
    if of.list {
        gpu::list();
        return ExitCode::SUCCESS;
    }
    let asked = of.common.placement.device;
    let device = if smoke && !given(&matches, "device") { DeviceChoice::Emulated } else { asked };
    if device == DeviceChoice::Cpu {
        if once || of.common.json.is_some() {
            eprintln!("--once and --json are for the table of GPU rows: give --device cuda or --smoke");
            return ExitCode::from(2);
        }
        cpu_gemm::run(&of.filters);
        return ExitCode::SUCCESS;
    }
    match gpu::run(device, How { smoke, once }, of.common.json.as_deref(), &of.filters) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(wrong) => {
            eprintln!("{wrong} rows failed");
            ExitCode::FAILURE
        }
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}
