//! How a launch is emulated, and what it counts.

/// The order in which threads run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// Warps in turn, lanes in order.
    Fifo,
    /// The same backwards, blocks too.
    Reverse,
    /// Any ready lane of any warp.
    Random,
    /// A random priority for each warp, reshuffled now and then: one warp runs far ahead of the others.
    WarpPriority,
}

/// When asynchronous copies and matrix products happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asynchrony {
    /// At issue.
    Eager,
    /// Not before something waits for them; until then the destination is poisoned.
    Late,
    /// At some moment between.
    Random,
}

/// How a launch is emulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// The order in which threads run.
    pub schedule: Schedule,
    /// When asynchronous work happens.
    pub asynchrony: Asynchrony,
    /// Of every random choice.
    pub seed: u64,
    /// Chance of a forced switch at a memory access, per 1024.
    pub preempt: u32,
    /// Uninitialised reads, races, proxy fences, copies left in flight. (Bounds and alignment are always checked.)
    pub checks: bool,
    /// Count bank conflicts and global sectors; slow.
    pub profile: bool,
    /// All blocks of the grid are resident together, for grid-wide barriers.
    pub cooperative: bool,
    /// More than 48 KiB of shared memory were not asked for (CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES), as they must be on a GPU.
    pub default_shared: bool,
    /// Clusters of 9 to 16 blocks were asked for (CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED), as they must be on a GPU.
    pub large_clusters: bool,
}

pub(crate) const DEFAULT: Config = Config {
    schedule: Schedule::Fifo,
    asynchrony: Asynchrony::Eager,
    seed: 1,
    preempt: 0,
    checks: false,
    profile: false,
    cooperative: false,
    default_shared: false,
    large_clusters: false,
};

impl Default for Config {
    fn default() -> Config {
        DEFAULT
    }
}

impl Config {
    /// The combinations that every kernel must pass, with all checks; `seed` varies the random ones.
    pub fn suite(seed: u64) -> [Config; 4] {
        let one = |schedule, asynchrony, seed, preempt| Config {
            schedule,
            asynchrony,
            seed,
            preempt,
            checks: true,
            ..Config::default()
        };
        [
            one(Schedule::Fifo, Asynchrony::Eager, seed, 0),
            one(Schedule::WarpPriority, Asynchrony::Late, seed, 0),
            one(Schedule::WarpPriority, Asynchrony::Random, seed + 1, 0),
            one(Schedule::Random, Asynchrony::Random, seed + 2, 4),
        ]
    }
}

/// What a launch did.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Switches from thread to thread.
    pub switches: u64,
    /// Memory accesses that the compiler reported.
    pub accesses: u64,
    /// Warp-wide requests to shared memory (with `profile`, as all below).
    pub shared_requests: u64,
    /// Passes over the banks that they took.
    pub shared_wavefronts: u64,
    /// Passes that they would take without a bank conflict.
    pub shared_ideal: u64,
    /// Warp-wide requests to global memory.
    pub global_requests: u64,
    /// 32-byte sectors that they touched.
    pub global_sectors: u64,
    /// Sectors that their bytes would fill.
    pub global_ideal: u64,
}

impl Stats {
    /// Wavefronts beyond the ideal.
    pub fn bank_conflicts(&self) -> u64 {
        self.shared_wavefronts - self.shared_ideal
    }
    /// Adds another launch.
    pub fn add(&mut self, o: &Stats) {
        self.switches += o.switches;
        self.accesses += o.accesses;
        self.shared_requests += o.shared_requests;
        self.shared_wavefronts += o.shared_wavefronts;
        self.shared_ideal += o.shared_ideal;
        self.global_requests += o.global_requests;
        self.global_sectors += o.global_sectors;
        self.global_ideal += o.global_ideal;
    }
}
