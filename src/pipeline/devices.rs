//! Work on one device or on several: for each a thread with a model of its own, jobs from one queue, results in the order of the jobs.
//!
//! How the work is cut into jobs does not depend on the devices, so that several compute what one does, to the bit.
use std::{
    cell::Cell,
    collections::VecDeque,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Mutex,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
};

use anyhow::{Context, Result};
use tracing::info_span;

use crate::device::DeviceChoice;

/// What is done with a model `M` on its device.
pub struct Work<'a, M, J, R, E> {
    /// Makes the model. Several are made one after the other, since main memory may hold no two.
    pub load: &'a (dyn Fn(DeviceChoice) -> Result<M> + Sync),
    /// The result of a job.
    pub compute: &'a (dyn Fn(&mut M, J) -> Result<R> + Sync),
    /// After the last job: what is left to say of a model that was made.
    pub end: &'a (dyn Fn(M) -> Result<E> + Sync),
}

/// Whoever computes the results `R` of jobs `J`.
pub enum Computing<'a, J, R> {
    /// The calling thread.
    Here(&'a mut dyn FnMut(J) -> Result<R>),
    /// The threads of several devices.
    Crew(&'a Crew<J, R>),
}

/// A piece of work on some rows, or why there is none; `about` stays with whoever gave it.
pub struct Job<T, J> {
    /// The rows that it is about.
    pub rows: Range<usize>,
    /// Comes back with the result.
    pub about: T,
    /// What is to be computed.
    pub job: Result<J>,
}

/// The threads of several devices.
pub struct Crew<J, R> {
    jobs: Sender<Asked<J, R>>,
    device: DeviceChoice,
    devices: usize,
    /// All devices are there.
    checked: Cell<bool>,
}

/// A job on its way to a thread.
struct Asked<J, R> {
    number: usize,
    rows: Range<usize>,
    job: J,
    to: Sender<(usize, thread::Result<Result<R>>)>,
}

/// Results may be this many times the number of devices ahead of the next one in order.
const AHEAD: usize = 4;

/// Calls `body` with whoever computes on `device`: the calling thread for one, a thread for each of several. A model is loaded when its device has its first
/// job; before the first job of all it is looked whether each of several is there. Returns what `body` does, and what the models say at their end.
pub fn on_devices<M, J: Send, R: Send, E: Send, T>(
    device: DeviceChoice,
    work: &Work<M, J, R, E>,
    body: impl FnOnce(Computing<J, R>) -> T,
) -> (T, Result<Vec<E>>) {
    let devices = device.each();
    if devices.len() == 1 {
        let mut model = None;
        let done = body(Computing::Here(&mut |job| {
            (work.compute)(made(&mut model, || (work.load)(device.first()))?, job)
        }));
        return (done, model.map(work.end).transpose().map(Vec::from_iter));
    }
    let (jobs, queue) = channel();
    let (queue, loading) = (Mutex::new(queue), Mutex::new(()));
    thread::scope(|scope| {
        let crew = Crew { jobs, device, devices: devices.len(), checked: Cell::new(false) };
        let start = |(name, device)| {
            let (queue, loading) = (&queue, &loading);
            scope.spawn(move || serve(name, device, work, queue, loading))
        };
        let threads: Vec<_> = devices.into_iter().map(start).collect();
        let done = body(Computing::Crew(&crew));
        // No more jobs: the threads end.
        drop(crew);
        let ends = threads.into_iter().map(|t| t.join().unwrap_or_else(|panic| resume_unwind(panic)));
        let ends: Vec<Result<Option<E>>> = ends.collect();
        (done, ends.into_iter().filter_map(Result::transpose).collect())
    })
}

/// The thread of a device.
fn serve<M, J, R, E>(
    name: String,
    device: DeviceChoice,
    work: &Work<M, J, R, E>,
    queue: &Mutex<Receiver<Asked<J, R>>>,
    loading: &Mutex<()>,
) -> Result<Option<E>> {
    let mut model = None;
    let load = || {
        let _one = loading.lock().unwrap_or_else(|e| e.into_inner());
        (work.load)(device)
    };
    loop {
        let next = queue.lock().unwrap_or_else(|e| e.into_inner()).recv();
        let Ok(Asked { number, rows, job, to }) = next else { break };
        let span =
            info_span!("compute", first = rows.start, rows = rows.len(), device = name.as_str()).entered();
        // Whoever asked is told of a panic, too, and goes on with it.
        let done = catch_unwind(AssertUnwindSafe(|| {
            made(&mut model, load)
                .and_then(|model| (work.compute)(model, job))
                .with_context(|| format!("on {name}"))
        }));
        drop(span);
        // Nobody may wait for it any more.
        let _ = to.send((number, done));
    }
    model.map(work.end).transpose().with_context(|| format!("on {name}"))
}

fn made<M>(model: &mut Option<M>, load: impl FnOnce() -> Result<M>) -> Result<&mut M> {
    Ok(match model {
        Some(model) => model,
        none => none.insert(load()?),
    })
}

impl<J, R> Computing<'_, J, R> {
    /// How many compute at the same time.
    pub fn devices(&self) -> usize {
        match self {
            Computing::Here(_) => 1,
            Computing::Crew(crew) => crew.devices,
        }
    }

    /// Gives `sink` the results of `jobs` in their order, until one is an error that `sink` returns. After an error, of a job or a result, no further job is
    /// begun; those that are at work end first, and the results before the error reach `sink`.
    ///
    /// # Errors
    /// `sink`'s; one of several devices that is not there, before anything is loaded.
    pub fn each<T>(
        &mut self,
        jobs: &mut dyn Iterator<Item = Job<T, J>>,
        sink: &mut dyn FnMut(Range<usize>, T, Result<R>) -> Result<()>,
    ) -> Result<()> {
        match self {
            Computing::Here(compute) => {
                for Job { rows, about, job } in jobs {
                    let span = info_span!("compute", first = rows.start, rows = rows.len()).entered();
                    let result = job.and_then(&mut *compute);
                    drop(span);
                    sink(rows, about, result)?;
                }
                Ok(())
            }
            Computing::Crew(crew) => crew.each(jobs, sink),
        }
    }
}

impl<J, R> Crew<J, R> {
    fn each<T>(
        &self,
        jobs: &mut dyn Iterator<Item = Job<T, J>>,
        sink: &mut dyn FnMut(Range<usize>, T, Result<R>) -> Result<()>,
    ) -> Result<()> {
        let (to, results) = channel();
        // Those that are not with `sink` yet, in order, each with its result where it is there.
        let mut open: VecDeque<(Range<usize>, T, Option<Result<R>>)> = VecDeque::new();
        let (mut given, mut at_work, mut more) = (0, 0, true);
        loop {
            while matches!(open.front(), Some((_, _, Some(_)))) {
                if let Some((rows, about, Some(result))) = open.pop_front() {
                    given += 1;
                    sink(rows, about, result)?;
                }
            }
            // No job waits in the queue, so that after an error none is begun.
            while more && at_work < self.devices && open.len() < AHEAD * self.devices {
                let Some(Job { rows, about, job }) = jobs.next() else {
                    more = false;
                    break;
                };
                let number = given + open.len();
                let failed = match job {
                    Ok(job) => {
                        if !self.checked.replace(true) {
                            self.device.check_there()?;
                        }
                        let asked = Asked { number, rows: rows.clone(), job, to: to.clone() };
                        self.jobs.send(asked).ok().context("the threads of the devices have ended")?;
                        at_work += 1;
                        None
                    }
                    Err(e) => Some(Err(e)),
                };
                more = failed.is_none();
                open.push_back((rows, about, failed));
            }
            match open.front() {
                None => return Ok(()),
                Some((_, _, Some(_))) => continue,
                Some(_) => {}
            }
            let (number, result) = results.recv().context("a device's thread has ended")?;
            let result = result.unwrap_or_else(|panic| resume_unwind(panic));
            at_work -= 1;
            more &= result.is_ok();
            if let Some(own) = open.get_mut(number - given) {
                own.2 = Some(result);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        sync::{
            Barrier,
            atomic::{AtomicUsize, Ordering},
        },
    };

    use anyhow::ensure;

    use super::*;

    fn jobs(n: usize) -> impl Iterator<Item = Job<&'static str, usize>> {
        (0..n).map(|i| Job { rows: i..i + 1, about: "mine", job: Ok(i) })
    }

    /// What `device` makes of 60 jobs: the results in the order in which they come, the error, and how often each job was computed.
    fn run(
        device: &str,
        compute: &(dyn Fn(&mut usize, usize) -> Result<usize> + Sync),
    ) -> (Vec<usize>, Result<()>, Vec<usize>, Vec<usize>) {
        let (made, times) = (AtomicUsize::new(0), Mutex::new(vec![0; 60]));
        let work = Work {
            load: &|_| Ok(made.fetch_add(1, Ordering::Relaxed)),
            compute: &|model, job: usize| {
                times.lock().unwrap()[job] += 1;
                compute(model, job)
            },
            end: &|model: usize| Ok(model),
        };
        let mut out = vec![];
        let body = |mut computing: Computing<usize, usize>| {
            computing.each(&mut jobs(60), &mut |rows, about, result| {
                assert_eq!((rows.len(), about), (1, "mine"));
                out.push(result?);
                Ok(())
            })
        };
        let (done, ends) = on_devices(device.parse().unwrap(), &work, body);
        (out, done, times.into_inner().unwrap(), ends.unwrap())
    }

    #[test]
    fn results_come_in_order_and_no_job_is_done_twice_whoever_computes() {
        for (device, n) in [("cpu", 1), ("emulated", 1), ("emulated:0-1", 2), ("emulated:0,2,5", 3)] {
            // Nobody goes on before each has a job, and later ones take unlike times.
            let all = Barrier::new(n);
            let seen = Mutex::new(BTreeSet::new());
            let (out, done, times, mut ends) = run(device, &|model, job| {
                if seen.lock().unwrap().insert(*model) {
                    all.wait();
                }
                thread::sleep(std::time::Duration::from_micros((job as u64 * 7919) % 1000));
                Ok(job * 10)
            });
            done.unwrap();
            assert_eq!(out, (0..60).map(|i| i * 10).collect::<Vec<_>>(), "{device}");
            assert_eq!(times, vec![1; 60], "{device}");
            ends.sort();
            assert_eq!(ends, (0..n).collect::<Vec<_>>(), "{device}: a model each, and each says its end");
        }
    }

    #[test]
    fn a_fault_on_one_device_names_it_keeps_what_came_before_and_begins_nothing_more() {
        let (out, done, times, _) = run("emulated:0-2", &|_, job| {
            // Those before it take longer.
            thread::sleep(std::time::Duration::from_millis(if job < 20 { 3 } else { 0 }));
            ensure!(job != 20, "the memory is full");
            Ok(job)
        });
        let error = format!("{:#}", done.unwrap_err());
        assert!(error.starts_with("on emulated:") && error.ends_with(": the memory is full"), "{error}");
        assert_eq!(out, (0..20).collect::<Vec<_>>());
        assert!(times.iter().sum::<usize>() <= 20 + AHEAD * 3 && times[59] == 0, "{times:?}");
    }

    #[test]
    #[should_panic(expected = "on a device's thread")]
    fn a_panic_on_a_device_comes_out() {
        let _ =
            run("emulated:0-1", &|_, job| if job == 9 { panic!("on a device's thread") } else { Ok(job) });
    }

    #[test]
    fn a_device_that_is_not_there_is_refused_before_anything_is_loaded() {
        let work = Work::<(), usize, (), ()> {
            load: &|_| panic!("loaded"),
            compute: &|_, _| Ok(()),
            end: &|_| Ok(()),
        };
        let body = |mut computing: Computing<usize, ()>| computing.each(&mut jobs(9), &mut |_, _, done| done);
        let (done, _) = on_devices("cuda:0,63".parse().unwrap(), &work, body);
        let error = format!("{:#}", done.unwrap_err());
        assert!(error.contains("--device cuda:0,63"), "{error}");
    }
}
