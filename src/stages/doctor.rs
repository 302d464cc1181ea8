//! `sdrrl doctor`: what this machine offers and what this build can use of it.
use std::collections::BTreeMap;

use anyhow::Result;

use crate::{
    device::{self, vectors},
    ops::gemm::uses_tile_unit,
    report::{
        environment::{VARIABLES, Who, processor, version},
        out::say,
    },
};

/// Arguments of `doctor`: none.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {}

/// Prints devices, kernels, memory and threads.
pub fn run(_args: &Args) -> Result<()> {
    say!("sdrrl      {} ({}-{})", version(), std::env::consts::ARCH, std::env::consts::OS);
    say!("processor  {}", processor().unwrap_or_else(|| "unknown".into()));
    say!("vectors    {}", list_or_none(&device::cpu_features()));
    say!(
        "tile unit  {}",
        if uses_tile_unit() { "AMX, for bf16 weights (SDRRL_AMX=0 turns it off)" } else { "none" }
    );
    say!("bits       as every processor that computes with {} gives them", vectors::processor());
    say!("threads    {} (set RAYON_NUM_THREADS to change)", rayon::current_num_threads());
    match device::host_memory() {
        Some((total, free)) => say!("memory     {:.1} GiB, {:.1} GiB available", gib(total), gib(free)),
        None => say!("memory     unknown: no /proc/meminfo"),
    }
    match device::gpus() {
        Ok(gpus) if gpus.is_empty() => say!("GPUs       none"),
        Ok(gpus) => {
            for (i, gpu) in gpus.iter().enumerate() {
                let (major, minor) = gpu.compute_capability;
                say!("GPU {i}      {}, sm_{major}{minor}, {:.1} GiB", gpu.name, gib(gpu.memory as u64));
            }
        }
        Err(why) => say!("GPUs       none: {why}"),
    }
    match device::nvcc_version() {
        Some(nvcc) => {
            say!("kernels    CUDA, by nvcc {nvcc}; checked with --device emulated on any machine");
            kernel_usage().iter().for_each(|line| say!("           {line}"));
        }
        None => say!(
            "kernels    no CUDA in this build: there was no nvcc (scripts/get_nvcc.sh brings one); --device emulated runs them on the processor"
        ),
    }
    for variable in VARIABLES {
        if let Some(value) = std::env::var_os(variable.name).filter(|_| variable.who == Who::User) {
            say!("variable   {}={}: {}", variable.name, value.display(), variable.what);
        }
    }
    Ok(())
}

/// By architecture: how many kernels there are, and the most that one of them takes, as ptxas tells.
fn kernel_usage() -> Vec<String> {
    let mut of: BTreeMap<&str, (usize, usize, usize)> = BTreeMap::new();
    for line in device::kernel_usage().lines() {
        let [_, arch, registers, shared, ..] = line.split_whitespace().collect::<Vec<_>>()[..] else {
            continue;
        };
        let number = |text: &str| text.parse().unwrap_or(0);
        let (kernels, most_registers, most_shared) = of.entry(arch).or_default();
        *kernels += 1;
        *most_registers = number(registers).max(*most_registers);
        *most_shared = number(shared).max(*most_shared);
    }
    let line = |(arch, (kernels, registers, shared)): (&str, (usize, usize, usize))| {
        format!(
            "{arch}: {kernels} kernels, up to {registers} registers a thread and {shared} bytes of static shared memory, no spills"
        )
    };
    of.into_iter().map(line).collect()
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / (1u64 << 30) as f64
}

fn list_or_none(items: &[&str]) -> String {
    if items.is_empty() { "none known".into() } else { items.join(" ") }
}
