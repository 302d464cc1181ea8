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

use gpu::How;

mod card;
#[path = "kernels/cpu_gemm.rs"]
mod cpu_gemm;
#[path = "kernels/gpu.rs"]
mod gpu;
#[path = "../tests/kernels/table/mod.rs"]
mod table;

fn main() -> ExitCode {
    let (mut device, mut json, mut how, mut filters) = (None, None, How::default(), vec![]);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--device" => device = args.next(),
            "--json" => json = args.next(),
            "--smoke" => how.smoke = true,
            "--list" => {
                gpu::list();
                return ExitCode::SUCCESS;
            }
            "--once" => how.once = true,
            // cargo's own.
            "--bench" => {}
            _ if arg.starts_with('-') => {
                eprintln!(
                    "there is no option {arg}; use --device cuda[:N], --json FILE, --smoke, --once, --list, and parts of rows' names"
                );
                return ExitCode::from(2);
            }
            _ => filters.push(arg),
        }
    }
    if how.smoke {
        device = device.or(Some("emulated".into()));
    }
    let Some(device) = device.filter(|d| d != "cpu") else {
        cpu_gemm::run(&filters);
        return ExitCode::SUCCESS;
    };
    match gpu::run(&device, how, json.as_deref(), &filters) {
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
