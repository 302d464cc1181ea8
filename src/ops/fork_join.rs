//! Fork and join in about a microsecond: helpers that have just worked wait for the next call spinning.
//!
//! One decoded token is some 150 small matrix products one after the other. Waking a sleeping pool costs 5 to 50 microseconds
//! each time, so helpers spin for [`SPIN`] after a call before they sleep, and the calling thread takes its share of the tasks
//! instead of sleeping. Tasks are claimed one at a time: a helper that the operating system has taken off its core claims none and
//! is waited for by no one. A call from inside a task, or while another thread's call runs, does its tasks itself, in order.
#![allow(unsafe_code)]
use std::{
    cell::UnsafeCell,
    hint,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, Mutex, TryLockError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::*},
    },
    thread::{self, Thread},
    time::{Duration, Instant},
};

/// How long an idle helper spins before it sleeps.
const SPIN: Duration = Duration::from_micros(300);
/// In [`Pool::gate`]: helpers may enter the current job.
const OPEN: u64 = 1 << 63;
/// In [`Pool::gate`]: one job.
const EPOCH: u64 = 1 << 32;

type Task<'a> = dyn Fn(usize) + Sync + 'a;

struct Pool {
    /// The open bit, the job's number, and in the lower half how many helpers are inside.
    gate: AtomicU64,
    /// Written only while the gate is shut and no helper is inside; read only inside.
    job: UnsafeCell<Option<*const Task<'static>>>,
    tasks: AtomicUsize,
    next: AtomicUsize,
    /// Helpers with a lower index take part.
    wanted: AtomicUsize,
    panicked: AtomicBool,
    /// Held during a call, so that there is one at a time.
    helpers: Mutex<Vec<Helper>>,
}
// SAFETY: `job` is read and written as its comment says, ordered by `gate`; the closure behind it is Sync.
unsafe impl Sync for Pool {}

struct Helper {
    thread: Thread,
    asleep: Arc<AtomicBool>,
}

static POOL: Pool = Pool {
    gate: AtomicU64::new(0),
    job: UnsafeCell::new(None),
    tasks: AtomicUsize::new(0),
    next: AtomicUsize::new(0),
    wanted: AtomicUsize::new(0),
    panicked: AtomicBool::new(false),
    helpers: Mutex::new(Vec::new()),
};

/// Calls `f(0)` to `f(tasks - 1)` on up to `threads` threads, this one among them, and returns when all are done.
/// A panic in a task comes out of this call.
pub(crate) fn fork_join(tasks: usize, threads: usize, f: &Task<'_>) {
    let wanted = threads.min(tasks).saturating_sub(1);
    let helpers = match POOL.helpers.try_lock() {
        _ if wanted == 0 => None,
        Ok(helpers) => Some(helpers),
        // A panicking task leaves the list of helpers as it was.
        Err(TryLockError::Poisoned(e)) => Some(e.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    };
    let Some(mut helpers) = helpers else {
        return (0..tasks).for_each(f);
    };
    while helpers.len() < wanted {
        match spawn(helpers.len()) {
            Ok(helper) => helpers.push(helper),
            Err(_) => break,
        }
    }
    // SAFETY: the lock is held, so the last call has shut the gate and seen every helper leave. The lifetime is only erased:
    // `shut` is dropped, which waits for the helpers, before `f` is.
    unsafe { *POOL.job.get() = Some(std::mem::transmute::<*const Task<'_>, *const Task<'static>>(f)) };
    POOL.tasks.store(tasks, Relaxed);
    POOL.next.store(0, Relaxed);
    POOL.wanted.store(wanted, Relaxed);
    let number = (POOL.gate.load(Relaxed) & !OPEN & !(EPOCH - 1)).wrapping_add(EPOCH) & !OPEN;
    POOL.gate.store(number | OPEN, SeqCst);
    let shut = Shut;
    for helper in helpers.iter().take(wanted) {
        if helper.asleep.load(SeqCst) {
            helper.thread.unpark();
        }
    }
    claim(f, tasks);
    drop(shut);
    if POOL.panicked.swap(false, Relaxed) {
        resume_unwind(Box::new("a task panicked on another thread"));
    }
}

fn claim(f: &Task<'_>, tasks: usize) {
    loop {
        let i = POOL.next.fetch_add(1, Relaxed);
        if i >= tasks {
            return;
        }
        f(i);
    }
}

/// Shuts the gate and waits for those inside, also when the calling thread's own task panics.
struct Shut;
impl Drop for Shut {
    fn drop(&mut self) {
        POOL.next.fetch_max(usize::MAX / 2, Relaxed);
        POOL.gate.fetch_and(!OPEN, AcqRel);
        let mut turns = 0u32;
        while POOL.gate.load(Acquire) & (EPOCH - 1) != 0 {
            turns += 1;
            // Whoever is still inside may be waiting for this very core.
            if turns > 10_000 { thread::yield_now() } else { hint::spin_loop() }
        }
    }
}

fn spawn(index: usize) -> std::io::Result<Helper> {
    let asleep = Arc::new(AtomicBool::new(false));
    let flag = asleep.clone();
    let cores = thread::available_parallelism().map_or(1, |n| n.get());
    // More threads than cores would spin in each other's way.
    let spin = if index + 1 < cores { SPIN } else { Duration::ZERO };
    let handle =
        thread::Builder::new().name(format!("ops-{index}")).spawn(move || help(index, spin, &flag))?;
    Ok(Helper { thread: handle.thread().clone(), asleep })
}

/// A helper's life.
fn help(index: usize, spin: Duration, asleep: &AtomicBool) {
    let mut seen = 0;
    loop {
        let mut gate = wait(seen, spin, asleep);
        seen = gate & !OPEN & !(EPOCH - 1);
        if index >= POOL.wanted.load(Relaxed) {
            continue;
        }
        let entered = loop {
            if gate & OPEN == 0 || gate & !OPEN & !(EPOCH - 1) != seen {
                break false;
            }
            match POOL.gate.compare_exchange_weak(gate, gate + 1, AcqRel, Acquire) {
                Ok(_) => break true,
                Err(now) => gate = now,
            }
        };
        if !entered {
            continue;
        }
        // SAFETY: inside the gate the job is set, and its caller waits until this helper has left.
        let f = unsafe { (*POOL.job.get()).map(|f| &*f) };
        let work = || f.into_iter().for_each(|f| claim(f, POOL.tasks.load(Relaxed)));
        if catch_unwind(AssertUnwindSafe(work)).is_err() {
            POOL.panicked.store(true, Relaxed);
        }
        POOL.gate.fetch_sub(1, AcqRel);
    }
}

/// Returns the gate once it is open for another job than `seen`.
fn wait(seen: u64, spin: Duration, asleep: &AtomicBool) -> u64 {
    let fresh = || {
        let gate = POOL.gate.load(SeqCst);
        (gate & OPEN != 0 && gate & !OPEN & !(EPOCH - 1) != seen).then_some(gate)
    };
    let start = Instant::now();
    loop {
        for _ in 0..64 {
            if let Some(gate) = fresh() {
                return gate;
            }
            hint::spin_loop();
        }
        if start.elapsed() < spin {
            continue;
        }
        // Either this sees a job opened meanwhile, or the caller sees the flag and unparks.
        asleep.store(true, SeqCst);
        let gate = fresh();
        if gate.is_none() {
            thread::park();
        }
        asleep.store(false, SeqCst);
        if let Some(gate) = gate.or_else(fresh) {
            return gate;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tests run at once, so some of these calls find the pool taken: the results must be the same.
    #[test]
    fn every_task_runs_once_with_any_number_of_threads_and_callers() {
        thread::scope(|s| {
            for caller in 0..4 {
                s.spawn(move || {
                    for round in 0..2000 {
                        let tasks = (round * 7 + caller) % 23;
                        let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                        fork_join(tasks, 1 + round % 5, &|i| {
                            counts[i].fetch_add(1, Relaxed);
                        });
                        assert!(counts.iter().all(|c| c.load(Relaxed) == 1));
                    }
                });
            }
        });
    }

    #[test]
    fn calls_may_nest() {
        let sum = AtomicUsize::new(0);
        fork_join(10, 3, &|i| {
            fork_join(10, 3, &|j| {
                sum.fetch_add(i * j, Relaxed);
            })
        });
        assert_eq!(sum.load(Relaxed), 45 * 45);
    }

    #[test]
    fn a_panic_in_a_task_reaches_the_caller_and_the_pool_goes_on() {
        for _ in 0..50 {
            let run = || {
                fork_join(8, 2, &|i| {
                    if i == 5 {
                        std::panic::panic_any("planted");
                    }
                })
            };
            assert!(catch_unwind(run).is_err());
            let sum = AtomicUsize::new(0);
            fork_join(8, 2, &|i| {
                sum.fetch_add(i, Relaxed);
            });
            assert_eq!(sum.load(Relaxed), 28);
        }
    }
}
