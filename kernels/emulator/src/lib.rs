//! Runs CUDA kernel sources on the CPU: an emulation of the execution model (fibers, shared memory, warp collectives, cp.async,
//! mbarriers, TMA, wgmma, clusters) under checks for bounds, uninitialised reads, data races and missing proxy fences.
//!
//! Kernels are C++ compiled against `cpp/cuda_emulation.hpp` with `-fsanitize=thread` (libtsan is never linked: the calls land here) and
//! register themselves by name. See `README.md` for what is modelled and what is not.
use rayon::prelude::*;
use std::{
    cell::Cell,
    ffi::{CStr, CString, c_char, c_int, c_void},
};

mod config;
mod memory;

use config::DEFAULT;
pub use config::{Asynchrony, Config, Schedule, Stats};
pub use memory::Memory;

#[repr(C)]
struct RawConfig {
    seed: u64,
    schedule: i32,
    asynchrony: i32,
    preempt: i32,
    checks: i32,
    profile: i32,
    cooperative: i32,
    part: i32,
    parts: i32,
    default_shared: i32,
    large_clusters: i32,
}
#[repr(C)]
#[derive(Clone, Copy)]
struct Dim(u32, u32, u32);

unsafe extern "C" {
    fn emu_launch(
        kernel: *const c_char,
        grid: Dim,
        block: Dim,
        cluster: Dim,
        smem: u32,
        args: *mut *mut c_void,
        sizes: *const u32,
        nargs: c_int,
        config: *const RawConfig,
        stats: *mut Stats,
    ) -> c_int;
    fn emu_last_error() -> *const c_char;
    fn emu_load_kernels(path: *const c_char) -> c_int;
    fn emu_kernel_name(i: c_int) -> *const c_char;
    fn emu_malloc(bytes: usize) -> *mut c_void;
    fn emu_free(p: *mut c_void);
    fn emu_copy_in(to: *mut c_void, from: *const c_void, n: usize) -> c_int;
    fn emu_fill_zero(to: *mut c_void, n: usize) -> c_int;
    fn emu_tensor_map_encode(
        map: *mut c_void,
        elem: c_int,
        rank: c_int,
        base: *mut c_void,
        dims: *const u64,
        strides: *const u64,
        box_: *const u32,
        swizzle: c_int,
    ) -> c_int;
}

/// Grid, block and cluster of a launch, and its dynamic shared memory in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Blocks of a cluster.
    pub cluster: [u32; 3],
    /// Dynamic shared memory of a block, bytes.
    pub shared_bytes: u32,
}

/// Runs a kernel to its end; `args` are its parameters' bytes. Errors name kernel, block, thread and what is wrong.
///
/// # Safety
/// Pointers among the arguments must be device memory that lives and is not used elsewhere meanwhile.
pub unsafe fn launch(kernel: &str, at: Geometry, args: &[&[u8]], config: &Config) -> Result<Stats, String> {
    // Unchecked blocks are independent of each other: all threads share them.
    let blocks = at.grid.iter().map(|&x| x as usize).product::<usize>();
    let alone = config.checks || config.profile || config.cooperative || at.cluster != [1; 3] || blocks < 2;
    let parts = if alone { 1 } else { rayon::current_num_threads().min(blocks) };
    if parts == 1 {
        // SAFETY: the caller's promise.
        return unsafe { launch_part(kernel, at, args, config, 0, 1) };
    }
    // SAFETY: the caller's promise.
    let part = |i| unsafe { launch_part(kernel, at, args, config, i, parts) };
    let done: Vec<Result<Stats, String>> = (0..parts).into_par_iter().map(part).collect();
    let mut total = Stats::default();
    for stats in done {
        total.add(&stats?);
    }
    Ok(total)
}

/// One share of the blocks.
///
/// # Safety
/// As [`launch`].
unsafe fn launch_part(
    kernel: &str,
    at: Geometry,
    args: &[&[u8]],
    config: &Config,
    part: usize,
    parts: usize,
) -> Result<Stats, String> {
    let name = CString::new(kernel).map_err(|e| e.to_string())?;
    // Parameters are aligned as the kernel expects: tensor maps to 64 bytes.
    let mut storage: Vec<[u64; 24]> = vec![[0; 24]; args.len()];
    let mut pointers = Vec::with_capacity(args.len());
    for (slot, arg) in storage.iter_mut().zip(args) {
        if arg.len() > 128 {
            return Err(format!("kernel {kernel}: an argument of {} bytes", arg.len()));
        }
        let base = slot.as_mut_ptr().cast::<u8>();
        let aligned = base.wrapping_add(base.align_offset(64));
        // SAFETY: 192 bytes hold 128 at any alignment to 64.
        unsafe { std::ptr::copy_nonoverlapping(arg.as_ptr(), aligned, arg.len()) };
        pointers.push(aligned.cast::<c_void>());
    }
    let sizes: Vec<u32> = args.iter().map(|a| a.len() as u32).collect();
    let raw = RawConfig {
        seed: config.seed,
        schedule: config.schedule as i32,
        asynchrony: config.asynchrony as i32,
        preempt: config.preempt as i32,
        checks: config.checks as i32,
        profile: config.profile as i32,
        cooperative: config.cooperative as i32,
        part: part as i32,
        parts: parts as i32,
        default_shared: config.default_shared as i32,
        large_clusters: config.large_clusters as i32,
    };
    let dim = |d: [u32; 3]| Dim(d[0], d[1], d[2]);
    let mut stats = Stats::default();
    // SAFETY: the arrays are as long as said; the rest is the caller's promise.
    let code = unsafe {
        emu_launch(
            name.as_ptr(),
            dim(at.grid),
            dim(at.block),
            dim(at.cluster),
            at.shared_bytes,
            pointers.as_mut_ptr(),
            sizes.as_ptr(),
            args.len() as c_int,
            &raw,
            &mut stats,
        )
    };
    if code == 0 {
        return Ok(stats);
    }
    // SAFETY: a string of this thread's emulator, valid until its next launch.
    let why = unsafe { CStr::from_ptr(emu_last_error()) }.to_string_lossy().into_owned();
    Err(format!("{why} ({:?}, {:?}, seed {})", config.schedule, config.asynchrony, config.seed))
}

/// Loads a shared object of kernels, which replace those of the same names: to try a changed kernel without building and linking the program
/// again. The program must export the emulator's symbols (tests are linked with `-rdynamic`). Call it before anything is launched.
///
/// # Safety
/// The shared object's constructors run; it must be compiled against this emulator's headers.
pub unsafe fn load_kernels(path: &std::path::Path) -> Result<(), String> {
    let name = CString::new(path.as_os_str().as_encoded_bytes()).map_err(|e| e.to_string())?;
    // SAFETY: a path as C wants it; the rest is the caller's promise.
    if unsafe { emu_load_kernels(name.as_ptr()) } == 0 {
        return Ok(());
    }
    // SAFETY: a string of this thread's emulator, valid until its next launch.
    Err(unsafe { CStr::from_ptr(emu_last_error()) }.to_string_lossy().into_owned())
}

/// The names of all kernels linked into this program, sorted.
pub fn kernels() -> Vec<String> {
    // SAFETY: strings that live as long as the program; null past the last.
    let name = |i| unsafe {
        let p = emu_kernel_name(i);
        (!p.is_null()).then(|| CStr::from_ptr(p).to_string_lossy().into_owned())
    };
    (0..).map_while(name).collect()
}

/// The bytes of a tensor map (CUtensorMap on a GPU): `dims` innermost first, `strides` in bytes of all dimensions but the first, `tile` the
/// box of one copy, `swizzle` 0 none, 1 32 B, 2 64 B, 3 128 B. Enforces the driver's rules.
pub fn tensor_map(
    base: u64,
    elem: usize,
    dims: &[u64],
    strides: &[u64],
    tile: &[u32],
    swizzle: u32,
) -> Result<[u8; 128], String> {
    if dims.len() != tile.len() || strides.len() + 1 != dims.len() {
        return Err(format!("tensor map: {dims:?}, {strides:?} and {tile:?} differ in rank"));
    }
    let mut map = [0; 128];
    // SAFETY: the arrays have `rank` entries (strides one less); only the addresses are stored.
    let code = unsafe {
        emu_tensor_map_encode(
            map.as_mut_ptr().cast(),
            elem as c_int,
            dims.len() as c_int,
            base as *mut c_void,
            dims.as_ptr(),
            strides.as_ptr(),
            tile.as_ptr(),
            swizzle as c_int,
        )
    };
    const RULES: [&str; 7] = [
        "rank must be 1 to 5",
        "the address must be a multiple of 16",
        "the inner box is wider than the swizzle",
        "the inner box must be a multiple of 16 bytes",
        "a box dimension must be 1 to 256",
        "a dimension must be 1 to 2^32",
        "strides must be multiples of 16 below 2^40",
    ];
    if code == 0 {
        Ok(map)
    } else {
        Err(format!("tensor map {dims:?}, box {tile:?}: {}", RULES[code as usize - 1]))
    }
}

thread_local! { static CONFIG: Cell<Config> = const { Cell::new(DEFAULT) } }
thread_local! { static TOTAL: Cell<Stats> = const { Cell::new(Stats { switches: 0, accesses: 0, shared_requests: 0, shared_wavefronts: 0,
shared_ideal: 0, global_requests: 0, global_sectors: 0, global_ideal: 0 }) } }

/// The configuration of this thread's launches ([`launch_here`]).
pub fn config() -> Config {
    CONFIG.get()
}

/// Runs `f` with `config` for this thread's launches; returns its value and the sum of their statistics.
pub fn with_config<T>(config: Config, f: impl FnOnce() -> T) -> (T, Stats) {
    struct Restore(Config, Stats);
    impl Drop for Restore {
        fn drop(&mut self) {
            CONFIG.set(self.0);
            TOTAL.set(self.1);
        }
    }
    let _restore = Restore(CONFIG.replace(config), TOTAL.replace(Stats::default()));
    let value = f();
    (value, TOTAL.get())
}

/// [`launch`] with this thread's configuration.
///
/// # Safety
/// As [`launch`].
pub unsafe fn launch_here(
    kernel: &str,
    at: Geometry,
    args: &[&[u8]],
    cooperative: bool,
) -> Result<(), String> {
    // SAFETY: the caller's promise.
    let stats = unsafe { launch(kernel, at, args, &Config { cooperative, ..config() })? };
    let mut total = TOTAL.get();
    total.add(&stats);
    TOTAL.set(total);
    Ok(())
}
