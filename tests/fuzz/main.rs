//! Every parser of outside bytes under changed inputs: none panics, takes more than two seconds, or more memory than 20 times its input and
//! 256 MiB.
//!
//! ```sh
//! cargo test --release --test fuzz                                  # short: some seconds
//! cargo test --release --test fuzz -- --inputs 1000000              # long: a million inputs a parser
//! cargo test --release --test fuzz -- --inputs 1000000 gguf pickle  # of some parsers
//! ```
//!
//! Inputs depend on `--seed` alone. What fails is written to `target/fuzz/PARSER-NUMBER` and named.
mod allocator;
mod big;
mod models;
mod mutate;
mod parsers;
mod seeds;
mod tokenizers;

use std::{
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use mutate::Random;
use parsers::Parser;
use rustix::time::{ClockId, clock_gettime};

#[global_allocator]
static ALLOCATOR: allocator::Counting = allocator::Counting;

/// Whether errors keep the stack that they came from.
const STACKS: &str = "RUST_LIB_BACKTRACE";
/// The longest that an input may take, time of the processor.
const LONGEST: Duration = Duration::from_secs(2);
/// When an input is taken for one that never ends, ms.
const LATEST: u64 = 120_000;
/// What an input may take: a multiple of its size, and bytes beyond it.
const FACTOR: usize = 20;
const FREE: usize = 256 << 20;
/// Longer inputs are cut: changes that repeat would make them grow without end.
const LONGEST_INPUT: usize = 1 << 16;
/// The time of a parser in the short form.
const SHORT: Duration = Duration::from_millis(450);

/// When the current input began, ms since the start; 0: none.
static SINCE: AtomicU64 = AtomicU64::new(0);
/// The current input, for the one that never ends.
static CURRENT: Mutex<Option<(&'static str, Vec<u8>)>> = Mutex::new(None);

struct Options {
    inputs: Option<u64>,
    seed: u64,
    filters: Vec<String>,
    list: bool,
}

/// Options of its own; those of the usual test runner change nothing here.
fn options() -> Options {
    let mut options = Options { inputs: None, seed: 1, filters: vec![], list: false };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--inputs" => options.inputs = arguments.next().and_then(|n| n.parse().ok()),
            "--seed" => options.seed = arguments.next().and_then(|n| n.parse().ok()).unwrap_or(1),
            "--list" => options.list = true,
            "--test-threads" | "--skip" | "--format" | "--color" | "--logfile" | "-Z" => {
                drop(arguments.next())
            }
            other if other.starts_with('-') => {}
            other => options.filters.push(other.trim_start_matches("fuzz::").into()),
        }
    }
    options
}

/// What became of a parser's inputs.
#[derive(Default)]
struct Outcome {
    inputs: u64,
    taken: u64,
    slowest: Duration,
    largest: usize,
    failures: Vec<String>,
}

fn main() -> ExitCode {
    if std::env::var_os(STACKS).is_none_or(|v| v != "0") {
        return without_stacks();
    }
    let options = options();
    // In this process, where memory is counted; templates have a child.
    sdrrl::use_program(None);
    // A child for each input would be most of the time.
    sdrrl::data::contained::use_again(true);
    let wanted = |p: &Parser| {
        options.filters.is_empty() || options.filters.iter().any(|f| p.name.contains(f.as_str()))
    };
    let parsers: Vec<Parser> = parsers::all().into_iter().filter(wanted).collect();
    if options.list {
        parsers.iter().for_each(|p| println!("fuzz::{}: test", p.name));
        return ExitCode::SUCCESS;
    }
    std::thread::spawn(watch);
    // Panics are counted and kept, not printed a million times.
    panic::set_hook(Box::new(|_| {}));
    let mut failed = false;
    for parser in &parsers {
        let outcome = fuzz(parser, &options);
        println!(
            "fuzz::{:<20} {:>9} inputs, {:>5.1} % taken, slowest {:>7.1} ms, most memory {:>6.1} MiB{}",
            parser.name,
            outcome.inputs,
            100.0 * outcome.taken as f64 / outcome.inputs.max(1) as f64,
            outcome.slowest.as_secs_f64() * 1e3,
            outcome.largest as f64 / (1 << 20) as f64,
            if outcome.failures.is_empty() { "" } else { "  FAILED" }
        );
        outcome.failures.iter().for_each(|f| println!("    {f}"));
        failed |= !outcome.failures.is_empty();
    }
    let big = big::failures(&options.filters, FACTOR, FREE);
    big.iter().for_each(|f| println!("    FAILED {f}"));
    failed |= !big.is_empty();
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// The same in a process whose errors keep no stack: three million of them cost 20 s where `RUST_BACKTRACE` is set, and what is measured is the
/// parser.
fn without_stacks() -> ExitCode {
    let program = std::env::current_exe().unwrap();
    let status = Command::new(program).args(std::env::args_os().skip(1)).env(STACKS, "0").status();
    if status.unwrap().success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn fuzz(parser: &Parser, options: &Options) -> Outcome {
    let scratch = Path::new("/dev/shm");
    let dir = tempfile::tempdir_in(if scratch.is_dir() { scratch } else { Path::new(".") }).unwrap();
    let name = parser.name.bytes().fold(options.seed, |n, b| n.wrapping_mul(257).wrapping_add(b.into()));
    let mut random = Random(name);
    let mut outcome = Outcome::default();
    let began = Instant::now();
    // The unchanged seeds first: each must be taken, or the rest would prove nothing.
    for seed in &parser.seeds {
        let input = (parser.wrap)(seed.clone());
        if !one(parser, dir.path(), &input, &mut outcome) {
            outcome.failures.push("a seed is not taken".into());
        }
    }
    while outcome.failures.len() < 5 {
        match options.inputs {
            Some(most) if outcome.inputs >= most => break,
            None if began.elapsed() > SHORT => break,
            _ => {}
        }
        let mut input = random.one(&parser.seeds).clone();
        for _ in 0..1 + random.below(4) {
            let other = random.one(&parser.seeds).clone();
            (parser.mutate)(&mut random, &mut input, &other);
            input.truncate(LONGEST_INPUT);
        }
        one(parser, dir.path(), &(parser.wrap)(input), &mut outcome);
    }
    outcome
}

/// Whether the parser took `input`; what is wrong with that goes into `outcome`.
fn one(parser: &Parser, dir: &Path, input: &[u8], outcome: &mut Outcome) -> bool {
    if !parser.file.is_empty() {
        seeds::put(&dir.join(parser.file), input);
    }
    if let Ok(mut current) = CURRENT.lock() {
        *current = Some((parser.name, input.to_vec()));
    }
    let began = processor_time();
    SINCE.store(now(), SeqCst);
    let mut taken = Ok(false);
    let memory = allocator::peak(|| {
        taken = panic::catch_unwind(AssertUnwindSafe(|| (parser.run)(dir, input)));
    });
    SINCE.store(0, SeqCst);
    let time = processor_time() - began;
    outcome.inputs += 1;
    outcome.slowest = outcome.slowest.max(time);
    outcome.largest = outcome.largest.max(memory);
    let mut fail = |what: String| {
        let path = keep(parser.name, outcome.inputs, input);
        outcome.failures.push(format!("{what}: {}", path.display()));
    };
    if let Err(why) = &taken {
        let text = why.downcast_ref::<String>().cloned();
        let text = text.or(why.downcast_ref::<&str>().map(|s| s.to_string())).unwrap_or_default();
        fail(format!("panic ({text})"));
    }
    if time > LONGEST {
        fail(format!("{:.1} s", time.as_secs_f64()));
    }
    if memory > FACTOR * input.len() + FREE {
        fail(format!("{} MiB for {} bytes", memory >> 20, input.len()));
    }
    let taken = taken.unwrap_or(false);
    outcome.taken += u64::from(taken);
    taken
}

/// Time of the processor for this thread: what other programs do on the machine does not count.
fn processor_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

fn keep(parser: &str, number: u64, input: &[u8]) -> PathBuf {
    let folder = Path::new("target/fuzz");
    let path = folder.join(format!("{parser}-{number}"));
    let _ = std::fs::create_dir_all(folder).and_then(|()| std::fs::write(&path, input));
    path
}

fn now() -> u64 {
    static START: Mutex<Option<Instant>> = Mutex::new(None);
    let start = *START.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert_with(Instant::now);
    1 + start.elapsed().as_millis() as u64
}

/// An input that takes much longer than one may, by the clock, is reported, and ends the run: a child's time is not this thread's, and other programs may be at work.
fn watch() {
    loop {
        std::thread::sleep(Duration::from_millis(200));
        let since = SINCE.load(SeqCst);
        if since > 0 && now() > since + LATEST && SINCE.load(SeqCst) == since {
            let current = CURRENT.lock().ok().and_then(|c| c.clone());
            let (name, input) = current.unwrap_or(("unknown", vec![]));
            println!(
                "fuzz::{name}: an input takes more than two minutes: {}",
                keep(name, 0, &input).display()
            );
            std::process::exit(1);
        }
    }
}
