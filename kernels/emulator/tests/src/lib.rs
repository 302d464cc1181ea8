//! How the emulator's own tests launch their small kernels.
use sdrrl_emulator::{Asynchrony, Config, Geometry, Memory, Schedule, Stats, launch};

/// Device memory with the bytes of `values`.
pub fn memory<T: Copy>(values: &[T]) -> Memory {
    let bytes = std::mem::size_of_val(values);
    let memory = Memory::new(bytes).expect("memory");
    // SAFETY: plain numbers, read as the bytes they are.
    memory.write(0, unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), bytes) });
    memory
}

/// Device memory for `n` values, never written.
pub fn fresh<T>(n: usize) -> Memory {
    Memory::new(n * size_of::<T>()).expect("memory")
}

/// The values in device memory.
pub fn values<T: Copy + Default>(memory: &Memory) -> Vec<T> {
    let mut out = vec![T::default(); memory.bytes() / size_of::<T>()];
    // SAFETY: plain numbers; any bytes are a value.
    memory.read(0, unsafe { std::slice::from_raw_parts_mut(out.as_mut_ptr().cast(), size_of_val(&out[..])) });
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

/// Launches; every pointer among `args` must come from a living [`Memory`].
pub fn run(kernel: &str, at: Geometry, args: &[Vec<u8>], config: &Config) -> Result<Stats, String> {
    let args: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
    // SAFETY: the tests keep their buffers alive over the call and use them from one thread.
    unsafe { launch(kernel, at, &args, config) }
}

/// All checks under one schedule.
pub fn checked(schedule: Schedule, asynchrony: Asynchrony, seed: u64, preempt: u32) -> Config {
    Config { schedule, asynchrony, seed, preempt, checks: true, ..Config::default() }
}

const SCHEDULES: [Schedule; 4] =
    [Schedule::Fifo, Schedule::Reverse, Schedule::Random, Schedule::WarpPriority];
const ASYNCHRONIES: [Asynchrony; 3] = [Asynchrony::Eager, Asynchrony::Late, Asynchrony::Random];

/// Every schedule with every asynchrony, two seeds each, with and without preemption, all checks on; and once without checks.
pub fn all_configs() -> Vec<Config> {
    let mut all = vec![Config::default()];
    for schedule in SCHEDULES {
        for asynchrony in ASYNCHRONIES {
            for seed in [1, 77] {
                all.extend([0, 100].map(|preempt| checked(schedule, asynchrony, seed, preempt)));
            }
        }
    }
    all
}

/// Every schedule with every asynchrony, one seed, all checks on.
pub fn twelve() -> Vec<Config> {
    let each = |schedule| ASYNCHRONIES.map(|asynchrony| checked(schedule, asynchrony, 5, 0));
    SCHEDULES.into_iter().flat_map(each).collect()
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
