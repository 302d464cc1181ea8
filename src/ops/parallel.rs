//! Sharing work and outputs among threads. How work is cut never depends on the number of threads.
#![allow(unsafe_code)]
use std::{
    cell::{Cell, RefCell},
    marker::PhantomData,
    ops::Range,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use crate::ops::fork_join::fork_join;

/// Below this many elementary operations a call stays on its own thread: waking the pool costs a microsecond to some ten.
const MIN_WORK: usize = 1 << 17;

thread_local!(static THREADS: Cell<Option<usize>> = const { Cell::new(None) });

/// Runs `f` with up to `threads` threads for each op that it calls, instead of rayon's number (`RAYON_NUM_THREADS`, or the processor's). No result
/// depends on it.
///
/// Tensors stay on their thread, so that rayon's `ThreadPool::install`, which moves its closure to another, does not take them.
pub fn with_threads<T>(threads: usize, f: impl FnOnce() -> T) -> T {
    struct Before(Option<usize>);
    impl Drop for Before {
        fn drop(&mut self) {
            THREADS.set(self.0);
        }
    }
    let _before = Before(THREADS.replace(Some(threads.max(1))));
    f()
}

fn threads() -> usize {
    THREADS.get().unwrap_or_else(rayon::current_num_threads)
}

/// Calls `f(0..tasks)`, in parallel if `work` (about one per float touched or multiplied) pays for it.
pub(crate) fn for_each_task(tasks: usize, work: usize, f: impl Fn(usize) + Sync + Send) {
    if tasks < 2 || work < MIN_WORK { (0..tasks).for_each(f) } else { fork_join(tasks, threads(), &f) }
}

/// The results of `f(0..tasks)`, computed as by [`for_each_task`].
pub(crate) fn map_tasks<T: Send>(tasks: usize, work: usize, f: impl Fn(usize) -> T + Sync + Send) -> Vec<T> {
    let out: Vec<Mutex<Option<T>>> = (0..tasks).map(|_| Mutex::new(None)).collect();
    for_each_task(tasks, work, |i| {
        let result = f(i);
        *out[i].lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
    });
    out.into_iter().filter_map(|x| x.into_inner().unwrap_or_else(PoisonError::into_inner)).collect()
}

/// The results of `f` on chunks of `size` elements, computed as by [`for_each_task`]: `f(i, chunk)`.
pub(crate) fn map_chunks<T: Send, R: Send>(
    data: &mut [T],
    size: usize,
    work: usize,
    f: impl Fn(usize, &mut [T]) -> R + Sync + Send,
) -> Vec<R> {
    let chunks: Vec<Mutex<&mut [T]>> = data.chunks_mut(size.max(1)).map(Mutex::new).collect();
    map_tasks(chunks.len(), work, |i| f(i, &mut chunks[i].lock().unwrap_or_else(PoisonError::into_inner)))
}

/// As [`for_each_task`], but each thread takes tasks that follow one another, and those of others only when its own are done: neighbouring
/// tasks that read one stream of memory then read it in order.
pub(crate) fn for_each_in_runs(tasks: usize, work: usize, f: impl Fn(usize) + Sync + Send) {
    let threads = threads().min(tasks);
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
