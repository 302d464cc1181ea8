//! Sharing work and outputs among threads. How work is cut never depends on the number of threads.
#![allow(unsafe_code)]
use std::{
    cell::RefCell,
    marker::PhantomData,
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use crate::ops::fork_join::fork_join;

/// Below this many elementary operations a call stays on its own thread: waking the pool costs a microsecond to some ten.
const MIN_WORK: usize = 1 << 17;

/// Calls `f(0..tasks)`, in parallel if `work` (about one per float touched or multiplied) pays for it.
pub(crate) fn for_each_task(tasks: usize, work: usize, f: impl Fn(usize) + Sync + Send) {
    if tasks < 2 || work < MIN_WORK {
        (0..tasks).for_each(f)
    } else {
        fork_join(tasks, rayon::current_num_threads(), &f)
    }
}

/// As [`for_each_task`], but each thread takes tasks that follow one another, and those of others only when its own are done: neighbouring
/// tasks that read one stream of memory then read it in order.
pub(crate) fn for_each_in_runs(tasks: usize, work: usize, f: impl Fn(usize) + Sync + Send) {
    let threads = rayon::current_num_threads().min(tasks);
    if threads < 2 || work < MIN_WORK {
        return (0..tasks).for_each(f);
    }
    let end = |run: usize| tasks * run / threads;
    let next: Vec<AtomicUsize> = (0..threads).map(|run| AtomicUsize::new(end(run))).collect();
    fork_join(threads, threads, &|own| {
        for run in (own..threads).chain(0..own) {
            loop {
                let task = next[run].fetch_add(1, Relaxed);
                if task >= end(run + 1) {
                    break;
                }
                f(task);
            }
        }
    })
}

/// Calls `f` on blocks of `0..rows`, of a size that gives each enough work at `work_per_row`.
pub(crate) fn for_each_rows(rows: usize, work_per_row: usize, f: impl Fn(Range<usize>) + Sync + Send) {
    let block = (MIN_WORK / 4 / work_per_row.max(1)).max(1);
    for_each_task(rows.div_ceil(block), rows.saturating_mul(work_per_row), |i| {
        f(i * block..((i + 1) * block).min(rows))
    })
}

/// An output that several tasks write, each its own part.
#[derive(Clone, Copy)]
pub(crate) struct Shared<'a> {
    ptr: *mut f32,
    len: usize,
    borrow: PhantomData<&'a mut [f32]>,
}
// SAFETY: plain floats; `part` makes its callers promise that no two tasks hold the same ones.
unsafe impl Send for Shared<'_> {}
// SAFETY: as above.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    pub(crate) fn new(data: &'a mut [f32]) -> Shared<'a> {
        Shared { ptr: data.as_mut_ptr(), len: data.len(), borrow: PhantomData }
    }

    /// The `len` elements from `start` on.
    ///
    /// # Safety
    /// While the result lives, nothing else uses any of these elements.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn part(&self, start: usize, len: usize) -> &'a mut [f32] {
        assert!(start <= self.len && len <= self.len - start);
        // SAFETY: in bounds; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(start), len) }
    }
}

/// Calls `f` with `len` floats of this thread's scratch memory, whose contents are whatever was left there.
pub(crate) fn with_scratch<T>(len: usize, f: impl FnOnce(&mut [f32]) -> T) -> T {
    thread_local!(static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) });
    SCRATCH.with_borrow_mut(|scratch| {
        if scratch.len() < len {
            scratch.resize(len, 0.0);
        }
        f(&mut scratch[..len])
    })
}
