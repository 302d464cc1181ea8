//! How the emulator's own tests launch their small kernels: on the emulator, or with SDRRL_TEST_DEVICE=cuda on a GPU.
use std::sync::OnceLock;

use sdrrl_emulator::{self as emulator, Asynchrony, Config, Geometry, Schedule, Stats};

mod cuda;
pub mod ring;
pub mod tiles;

/// True if the tests run on a GPU.
pub fn on_gpu() -> bool {
    static CHOICE: OnceLock<bool> = OnceLock::new();
    *CHOICE.get_or_init(|| match std::env::var("SDRRL_TEST_DEVICE").as_deref() {
        Err(_) | Ok("" | "emulated") => false,
        Ok("cuda") => true,
        Ok(other) => panic!("SDRRL_TEST_DEVICE={other}: emulated or cuda"),
    })
}

/// True on a GPU, for what only the emulator has; says so.
pub fn skipped(what: &str) -> bool {
    if on_gpu() {
        println!("skipped on a GPU: {what}");
    }
    on_gpu()
}

/// Device memory, never written before.
pub enum Memory {
    /// On the emulator.
    Emulated(emulator::Memory),
    /// On a GPU.
    Cuda(cuda::Buffer),
}

impl Memory {
    fn new(bytes: usize) -> Memory {
        if on_gpu() {
            Memory::Cuda(cuda::Buffer::new(bytes).unwrap_or_else(|why| panic!("{why}")))
        } else {
            Memory::Emulated(emulator::Memory::new(bytes).expect("memory"))
        }
    }
    /// The address that kernels get.
    pub fn address(&self) -> u64 {
        match self {
            Memory::Emulated(memory) => memory.address(),
            Memory::Cuda(buffer) => buffer.address(),
        }
    }
}

/// Device memory with the bytes of `values`.
pub fn memory<T: Copy>(values: &[T]) -> Memory {
    let bytes = std::mem::size_of_val(values);
    let memory = Memory::new(bytes);
    // SAFETY: plain numbers, read as the bytes they are.
    let from = unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), bytes) };
    match &memory {
        Memory::Emulated(memory) => memory.write(0, from),
        Memory::Cuda(buffer) => buffer.write(from).unwrap_or_else(|why| panic!("{why}")),
    }
    memory
}

/// Device memory for `n` values, never written.
pub fn fresh<T>(n: usize) -> Memory {
    Memory::new(n * size_of::<T>())
}

/// The values in device memory.
pub fn values<T: Copy + Default>(memory: &Memory) -> Vec<T> {
    let bytes = match memory {
        Memory::Emulated(memory) => memory.bytes(),
        Memory::Cuda(buffer) => buffer.bytes(),
    };
    let mut out = vec![T::default(); bytes / size_of::<T>()];
    // SAFETY: plain numbers; any bytes are a value.
    let to = unsafe { std::slice::from_raw_parts_mut(out.as_mut_ptr().cast(), size_of_val(&out[..])) };
    match memory {
        Memory::Emulated(memory) => memory.read(0, to),
        Memory::Cuda(buffer) => buffer.read(to).unwrap_or_else(|why| panic!("{why}")),
    }
    out
}

/// One parameter of a kernel, as bytes.
pub fn arg<T: Copy>(value: T) -> Vec<u8> {
    // SAFETY: the value's own bytes (tests pass types without padding).
    unsafe { std::slice::from_raw_parts((&raw const value).cast::<u8>(), size_of::<T>()) }.to_vec()
}

/// A buffer's address as a parameter.
pub fn at(memory: &Memory) -> Vec<u8> {
    arg(memory.address())
}

/// A grid of `blocks` blocks of `threads`, no cluster.
pub fn geometry(blocks: u32, threads: u32, shared_bytes: u32) -> Geometry {
    Geometry { grid: [blocks, 1, 1], block: [threads, 1, 1], cluster: [1; 3], shared_bytes }
}

/// Launches and waits; every pointer among `args` must come from a living [`Memory`]. A GPU heeds no schedule and counts nothing.
pub fn run(kernel: &str, at: Geometry, args: &[Vec<u8>], config: &Config) -> Result<Stats, String> {
    if on_gpu() {
        // SAFETY: the tests keep their buffers alive over the call.
        return unsafe { cuda::launch(kernel, at, args, config) }.map(|()| Stats::default());
    }
    let args: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
    // SAFETY: the tests keep their buffers alive over the call and use them from one thread.
    unsafe { emulator::launch(kernel, at, &args, config) }
}

/// The bytes of a tensor map, by the emulator or by CUDA's driver (see [`emulator::tensor_map`]).
pub fn tensor_map(
    base: u64,
    elem: usize,
    dims: &[u64],
    strides: &[u64],
    tile: &[u32],
    swizzle: u32,
) -> Result<[u8; 128], String> {
    let encode = if on_gpu() { cuda::tensor_map } else { emulator::tensor_map };
    encode(base, elem, dims, strides, tile, swizzle)
}

/// All checks under one schedule.
pub fn checked(schedule: Schedule, asynchrony: Asynchrony, seed: u64, preempt: u32) -> Config {
    Config { schedule, asynchrony, seed, preempt, checks: true, ..Config::default() }
}

const SCHEDULES: [Schedule; 4] =
    [Schedule::Fifo, Schedule::Reverse, Schedule::Random, Schedule::WarpPriority];
const ASYNCHRONIES: [Asynchrony; 3] = [Asynchrony::Eager, Asynchrony::Late, Asynchrony::Random];

/// Every schedule with every asynchrony, two seeds each, with and without preemption, all checks on; and once without checks. On a GPU just once.
pub fn all_configs() -> Vec<Config> {
    let mut all = vec![Config::default()];
    if on_gpu() {
        return all;
    }
    for schedule in SCHEDULES {
        for asynchrony in ASYNCHRONIES {
            for seed in [1, 77] {
                all.extend([0, 100].map(|preempt| checked(schedule, asynchrony, seed, preempt)));
            }
        }
    }
    all
}

/// Every schedule with every asynchrony, one seed, all checks on. On a GPU just once.
pub fn twelve() -> Vec<Config> {
    if on_gpu() {
        return vec![Config::default()];
    }
    let each = |schedule| ASYNCHRONIES.map(|asynchrony| checked(schedule, asynchrony, 5, 0));
    SCHEDULES.into_iter().flat_map(each).collect()
}

/// [`twelve`] for what ends in a report; none on a GPU, which gives none.
pub fn reporting() -> Vec<Config> {
    if skipped("reports of faults") { vec![] } else { twelve() }
}

/// Asserts that a launch failed and that its report has every one of `words`.
#[track_caller]
pub fn assert_report(config: &Config, outcome: Result<Stats, String>, words: &[&str]) {
    let report = match outcome {
        Ok(_) => panic!("the fault passed under {config:?}"),
        Err(report) => report,
    };
    for word in words {
        assert!(report.contains(word), "\"{word}\" is not in the report under {config:?}: {report}");
    }
    assert!(report.contains(&format!("seed {}", config.seed)), "no seed in: {report}");
}
