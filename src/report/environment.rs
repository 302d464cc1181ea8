//! The environment variables that this program reads: the one list that help, `doctor` and `docs/environment.md` print, and that a test holds against
//! the sources.
use std::fmt::Write;

/// Who sets a variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// Whoever runs the program.
    User,
    /// Whoever builds it.
    Build,
    /// Whoever tests it or works on kernels.
    Developer,
}

/// A variable.
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// Who sets it.
    pub who: Who,
    /// What it does.
    pub what: &'static str,
}

const fn variable(who: Who, name: &'static str, what: &'static str) -> Variable {
    Variable { name, who, what }
}

use Who::{Build, Developer, User};

/// All of them.
pub const VARIABLES: &[Variable] = &[
    variable(User, "SDRRL_TRACE", "file for a trace of where the time goes, as --trace"),
    variable(User, "SDRRL_LANGUAGE_ID", "fastText model that identifies languages, as --language-id"),
    variable(User, "SDRRL_VECTORS", "vector instructions: avx512, avx2 or portable (bits depend on it)"),
    variable(User, "SDRRL_AMX", "0: no products on Intel's tile unit (bits depend on it)"),
    variable(User, "SDRRL_SYNC_LAUNCHES", "1: wait after each GPU kernel, so that a fault names its kernel"),
    variable(User, "SDRRL_NVTX", "1: ranges for NVIDIA's profilers; 0: none even under a profiler"),
    variable(User, "SDRRL_GEMM", "forces one implementation of GPU matrix products, to compare them"),
    variable(
        User,
        "SDRRL_FATBINS",
        "folder of fatbins that replace the built-in GPU kernels of the same name",
    ),
    variable(
        User,
        "SDRRL_NCCL",
        "libnccl.so.2 for training by several ranks, or its folder, where the system does not find it",
    ),
    variable(User, "SDRRL_RANK_TIMEOUT", "seconds that ranks wait for each other before all end (300)"),
    variable(User, "RAYON_NUM_THREADS", "threads (results do not depend on it)"),
    variable(User, "HF_HOME", "folder of the Hugging Face cache, where models are found by name"),
    variable(User, "HF_HUB_CACHE", "the same, the `hub` folder itself"),
    variable(User, "XDG_CACHE_HOME", "where hashes of large files are remembered, in sdrrl/hashes"),
    variable(User, "NO_COLOR", "no colours"),
    variable(User, "SOURCE_DATE_EPOCH", "today's date for chat templates that print one, seconds since 1970"),
    variable(Build, "SDRRL_REQUIRE_NVCC", "1: a build without nvcc fails"),
    variable(Build, "SDRRL_COMMIT", "commit that reports and doctor name beside the version"),
    variable(Build, "SDRRL_EMULATOR_INCLUDE", "set by the emulator's build for the kernels' build"),
    variable(Build, "SDRRL_SIGNATURES", "a macro: the kernels' signatures are being read"),
    variable(Developer, "SDRRL_BIN", "the program under test"),
    variable(Developer, "SDRRL_TEST_DEVICE", "device of the kernel tests"),
    variable(Developer, "SDRRL_TEST_ADAPTERS", "where a test leaves the adapters that PEFT is to read"),
    variable(Developer, "SDRRL_TEST_FOLDER", "where a test that runs itself again has its files"),
    variable(Developer, "SDRRL_TEST_SHRINKS", "the file that a test that runs itself again cuts off"),
    variable(Developer, "SDRRL_TEST_LID", "a fastText model that identifies languages, for a test"),
    variable(Developer, "SDRRL_TEST_LID_PREDICTIONS", "what `fasttext` predicts with it"),
    variable(Developer, "SDRRL_TEST_KERNELS", "only kernels whose name contains this are tested"),
    variable(Developer, "SDRRL_TEST_SEEDS", "how many schedules each kernel is tested in"),
    variable(Developer, "SDRRL_TEST_BINARY", "the test binary that mutate_kernels.sh runs"),
    variable(Developer, "SDRRL_FAULT", "the planted fault of the emulator's own tests"),
    variable(Developer, "SDRRL_REHEARSAL_MIB", "memory of the rehearsal's GPU"),
    variable(Developer, "SDRRL_REHEARSAL_CHECKS", "0: the rehearsal runs without checks"),
    variable(
        Developer,
        "SDRRL_REHEARSAL_FAIL",
        "the kernel that fails in the rehearsal; `NAME@1` on GPU 1 alone",
    ),
    variable(Developer, "SDRRL_REHEARSAL_NCCL", "the fault that the rehearsal's NCCL has: WHAT:RANK:CALL"),
    variable(Developer, "SDRRL_REHEARSAL_NCCL_LOG", "where the rehearsal's NCCL writes calls and bytes"),
    variable(
        Developer,
        "SDRRL_REHEARSAL_STREAMS",
        "late: the rehearsal runs streams beside the default one as late as it may",
    ),
    variable(
        Developer,
        "SDRRL_REHEARSAL_TRACE",
        "where the rehearsal writes launches and exchanges in order",
    ),
    variable(Developer, "SDRRL_REHEARSAL_GPUS", "how many GPUs the rehearsal's driver has"),
    variable(
        Developer,
        "SDRRL_LAUNCHED",
        "set for the ranks that `train` starts itself; `recipe` where a recipe does",
    ),
    variable(Developer, "SDRRL_FLORES", "FLORES files for tests of their format and of spBLEU"),
    variable(Developer, "SDRRL_FREEDICT", "a FreeDict dictionary for tests"),
    variable(Developer, "SDRRL_IPADIC", "MeCab's IPA dictionary for tests"),
    variable(Developer, "SDRRL_UNIDIC", "MeCab's UniDic for tests"),
    variable(Developer, "SDRRL_KODIC", "MeCab's Korean dictionary for tests"),
    variable(Developer, "SDRRL_THAI_WORDS", "a Thai word list for tests"),
];

/// The version of this program, with the commit where the build was told it.
pub fn version() -> String {
    let commit = option_env!("SDRRL_COMMIT").map_or(String::new(), |commit| format!(", commit {commit}"));
    format!("{}{commit}", env!("CARGO_PKG_VERSION"))
}

/// The processor's name; `None` where the system does not tell.
pub fn processor() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|l| l.starts_with("model name"))?;
    Some(line.split(':').nth(1)?.trim().to_string())
}

/// The memory that this process has now, bytes; `None` where the system does not tell.
pub fn resident_memory() -> Option<u64> {
    memory("VmRSS:")
}

/// The most memory that this process has had, bytes; `None` where the system does not tell.
pub fn peak_memory() -> Option<u64> {
    memory("VmHWM:")
}

fn memory(key: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().trim_end_matches("kB").trim().parse::<u64>().ok().map(|kib| kib << 10)
}

/// The variables for whoever runs the program, for the end of `--help`.
pub fn help() -> String {
    let mut text = String::from("Environment:");
    for v in VARIABLES.iter().filter(|v| v.who == User) {
        let _ = write!(text, "\n  {:20} {}", v.name, v.what);
    }
    text
}

/// The whole list as `docs/environment.md` has it.
pub fn page() -> String {
    let mut text = String::from(
        "# Environment variables\n\nMade from `src/report/environment.rs`; a test holds it against that list and the list against the sources.\n",
    );
    for (who, title) in
        [(User, "For whoever runs sdrrl"), (Build, "For builds"), (Developer, "For tests and kernels")]
    {
        let _ = write!(text, "\n## {title}\n\n| variable | what it does |\n|---|---|\n");
        for v in VARIABLES.iter().filter(|v| v.who == who) {
            let _ = writeln!(text, "| `{}` | {} |", v.name, v.what);
        }
    }
    text
}
