//! Each rank's connection to rank 0 while it trains: signs of life, and who has failed. NCCL hangs when a rank dies; this ends all of them within a bounded time.
use std::{
    net::TcpStream,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
        mpsc,
    },
    thread::{self, sleep},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{
    frames::{Doing, Message, receive, send},
    lobby::Met,
    patience,
    world::World,
};
use crate::{
    device::nccl::Communicator,
    report::out::{self, Mode, note},
};

/// Between two signs of life.
const BEAT: Duration = Duration::from_millis(500);
/// What a rank that has failed leaves to rank 0, which may know better who began, before it speaks itself.
const DEFERENCE: Duration = Duration::from_secs(2);
/// How long rank 0 has to say what happened, and how long an end may take.
const END: Duration = Duration::from_secs(10);

/// What a rank does, since when.
#[derive(Clone, Copy)]
struct Now {
    step: u64,
    doing: Doing,
    since: Instant,
}

/// One rank's end of the connections.
pub struct Control(Arc<Shared>);

struct Shared {
    world: World,
    hosts: Vec<String>,
    streams: Vec<(usize, TcpStream)>,
    /// By rank: this one's own and, on rank 0, what the others last said.
    now: Mutex<Vec<Now>>,
    done: Mutex<Vec<bool>>,
    ending: AtomicBool,
    communicator: Mutex<Option<Arc<Communicator>>>,
    patience: Duration,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Control {
    /// Begins to watch.
    pub fn begin(world: World, met: Met) -> Result<Control> {
        let start = Now { step: 0, doing: Doing::Computing, since: Instant::now() };
        let shared = Arc::new(Shared {
            world,
            hosts: met.hosts,
            streams: met.streams,
            now: Mutex::new(vec![start; world.size()]),
            done: Mutex::new(vec![false; world.size()]),
            ending: AtomicBool::new(false),
            communicator: Mutex::default(),
            patience: patience()?,
        });
        for (at, (_, stream)) in shared.streams.iter().enumerate() {
            stream.set_read_timeout(Some(shared.patience)).context("watch the other ranks")?;
            let own = shared.clone();
            thread::Builder::new()
                .name("rank".into())
                .spawn(move || own.hear(at))
                .context("watch the ranks")?;
        }
        let own = shared.clone();
        thread::Builder::new().name("beat".into()).spawn(move || own.beat()).context("watch the ranks")?;
        Ok(Control(shared))
    }

    /// Machines by rank.
    pub fn hosts(&self) -> &[String] {
        &self.0.hosts
    }

    /// What is aborted when a rank fails.
    pub fn uses(&self, communicator: Option<Arc<Communicator>>) {
        *locked(&self.0.communicator) = communicator;
    }

    /// Steps done.
    pub fn step(&self, step: u64) {
        let own = self.0.world.rank();
        locked(&self.0.now)[own].step = step;
    }

    /// What this rank does from now on.
    pub fn does(&self, doing: Doing) {
        let own = self.0.world.rank();
        let now = &mut locked(&self.0.now)[own];
        (now.doing, now.since) = (doing, Instant::now());
    }

    /// This rank's part is over.
    pub fn done(&self) {
        let own = self.0.world.rank();
        locked(&self.0.done)[own] = true;
        self.0.tell(&Message::Done);
    }

    /// This rank has failed: all others end. Rank 0 says why; if it is another's fault, this does not return. The error as this rank should say it.
    pub fn failed(&self, error: anyhow::Error) -> anyhow::Error {
        let (own, step) = (self.0.world.rank(), self.0.own().step);
        sleep(DEFERENCE.mul_f64(if own == 0 { 0.5 } else { 1.0 }));
        if own == 0 {
            if self.0.ending.swap(true, SeqCst) {
                loop {
                    thread::park();
                }
            }
            self.0.tell(&Message::End);
            self.0.abort();
            return error.context(self.0.named(0, step));
        }
        self.0.tell(&Message::Failed { step, message: format!("{error:#}") });
        sleep(END);
        // Rank 0 would have ended this process.
        out::set_mode(Mode::Work);
        error.context(self.0.named(own, step))
    }
}

impl Shared {
    fn own(&self) -> Now {
        locked(&self.now)[self.world.rank()]
    }

    fn named(&self, rank: usize, step: u64) -> String {
        let host = self.hosts.get(rank).map_or("an unknown machine", String::as_str);
        format!("rank {rank} of {} on {host}, after step {step}", self.world.size())
    }

    fn tell(&self, message: &Message) {
        self.streams.iter().for_each(|(_, stream)| drop(send(stream, message)));
    }

    /// Tells the others that this rank lives; rank 0 looks for one that all wait for.
    fn beat(&self) {
        loop {
            sleep(BEAT);
            let Now { step, doing, since } = self.own();
            if locked(&self.done)[self.world.rank()] {
                return;
            }
            self.tell(&Message::Beat { step, doing, since: since.elapsed().as_secs() });
            if self.world.rank() == 0 {
                self.look_for_hung();
            }
        }
    }

    /// Ends all if the others have waited for a rank too long, or all for each other.
    fn look_for_hung(&self) {
        let (now, done) = (locked(&self.now).clone(), locked(&self.done).clone());
        let late = |i: usize, doing: Doing| {
            !done[i] && now[i].doing == doing && now[i].since.elapsed() > self.patience
        };
        let mut all = 0..now.len();
        if !all.clone().any(|i| late(i, Doing::Waiting)) {
            return;
        }
        let seconds =
            format!("for more than {} s (SDRRL_RANK_TIMEOUT sets the time)", self.patience.as_secs());
        if let Some(rank) = all.clone().find(|&i| late(i, Doing::Computing)) {
            self.fail(rank, &format!("has not come to where the others wait {seconds}"));
        } else if all.all(|i| done[i] || late(i, Doing::Waiting)) {
            self.fail(0, &format!("it and all others wait for each other in NCCL {seconds}: NCCL_DEBUG=INFO makes NCCL say more"));
        }
    }

    /// Hears one of the connections until it ends.
    fn hear(&self, at: usize) {
        let (rank, stream) = &self.streams[at];
        let rank = *rank;
        loop {
            match receive(stream) {
                Ok(Some(Message::Beat { step, doing, since })) => {
                    let since =
                        Instant::now().checked_sub(Duration::from_secs(since)).unwrap_or_else(Instant::now);
                    locked(&self.now)[rank] = Now { step, doing, since };
                }
                Ok(Some(Message::Done)) => {
                    locked(&self.done)[rank] = true;
                    return;
                }
                Ok(Some(Message::Failed { step, message })) => {
                    locked(&self.now)[rank].step = step;
                    return self.fail(rank, &message);
                }
                Ok(Some(Message::End)) => {
                    self.ending.store(true, SeqCst);
                    return self.end();
                }
                Ok(Some(_)) => return self.fail(rank, "said something that is said before training alone"),
                Ok(None) => {
                    if !locked(&self.done)[self.world.rank()] {
                        self.fail(rank, "is gone without a word: it was killed, or its machine is");
                    }
                    return;
                }
                Err(_) => {
                    let seconds = self.patience.as_secs();
                    return self.fail(
                        rank,
                        &format!("has not been heard of for {seconds} s (SDRRL_RANK_TIMEOUT sets the time)"),
                    );
                }
            }
        }
    }

    /// Says once that `rank` has failed, and ends this process and, from rank 0, all others.
    fn fail(&self, rank: usize, why: &str) {
        if self.ending.swap(true, SeqCst) {
            return;
        }
        let step = locked(&self.now)[rank].step;
        // Only rank 0 speaks, unless it is rank 0 that is gone.
        out::set_mode(Mode::Work);
        note!("error: {}: {why}", self.named(rank, step));
        self.tell(&Message::End);
        self.end();
    }

    /// Ends what waits in NCCL, within a bounded time.
    fn abort(&self) {
        let communicator = locked(&self.communicator).clone();
        let (done, aborted) = mpsc::channel();
        thread::spawn(move || {
            if let Some(communicator) = communicator {
                communicator.abort();
            }
            let _ = done.send(());
        });
        let _ = aborted.recv_timeout(END);
    }

    /// Ends this process.
    fn end(&self) {
        self.abort();
        // Libraries' own endings may wait for what hangs.
        thread::spawn(|| {
            sleep(END);
            let own = rustix::process::getpid();
            let _ = rustix::process::kill_process(own, rustix::process::Signal::KILL);
        });
        std::process::exit(1);
    }
}
