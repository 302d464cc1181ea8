//! Where ranks meet: rank 0 listens, the others connect and show what they are about to do; whatever does not belong together is named before anything is trained.
use std::{
    net::{TcpListener, TcpStream},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{
    frames::{Message, receive, send},
    patience,
    ranks::Ranks,
};
use crate::{device::nccl::ID_BYTES, error::Error, report::out::note};

pub use super::frames::Hello;

/// How long whoever has connected may take for its first message.
const FIRST: Duration = Duration::from_secs(10);
/// How long those that have not come yet are awaited, to be sent home.
const LEAVE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(20);
/// How many of the missing ranks are named.
const NAMED: usize = 8;

/// Ranks that have met: open connections, by rank (rank 0 has one to each, the others one to rank 0).
pub struct Met {
    /// The other ends.
    pub(super) streams: Vec<(usize, TcpStream)>,
    /// Machines by rank.
    pub(super) hosts: Vec<String>,
    /// Of the communicator.
    pub(super) id: [u8; ID_BYTES],
}

/// Rank 0's side, before the others have come.
pub struct Lobby {
    ranks: Ranks,
    listener: TcpListener,
}

impl Lobby {
    /// Listens where the launcher says.
    ///
    /// # Errors
    /// An address that is not this machine's; a port in use: which, and what to do.
    pub fn open(ranks: &Ranks) -> Result<Lobby> {
        let Ranks { address, port, .. } = ranks;
        let listener = TcpListener::bind((address.as_str(), *port)).with_context(|| {
            format!(
                "rank 0 cannot listen at {address}:{port}: set MASTER_ADDR to this machine and MASTER_PORT to a port that nobody uses, for all ranks alike"
            )
        })?;
        listener.set_nonblocking(true).context("listen for the other ranks")?;
        Ok(Lobby { ranks: ranks.clone(), listener })
    }

    /// Waits for all others, compares what they show with `own` (`differs` names differences of the work), and lets them begin with NCCL's `id`.
    ///
    /// # Errors
    /// Ranks that have not come in time; a signal (`interrupted`); ranks that cannot train, or that would train something else: each by name. All that came are sent home.
    pub fn meet(
        &self,
        own: Hello,
        differs: &dyn Fn(&Value) -> Vec<String>,
        id: impl FnOnce() -> Result<[u8; ID_BYTES]>,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<Met> {
        let patience = patience()?;
        let (size, until) = (self.ranks.world.size(), Instant::now() + patience);
        let mut hellos = vec![own];
        let mut streams: Vec<(usize, TcpStream)> = vec![];
        while hellos.len() < size && Instant::now() < until && !interrupted() {
            match self.next()? {
                Some((stream, hello)) => {
                    streams.push((hello.rank, stream));
                    hellos.push(hello);
                }
                None => sleep(PAUSE),
            }
        }
        let begin = || {
            let Ranks { address, port, .. } = &self.ranks;
            if hellos.len() < size {
                ensure!(!interrupted(), Error::interrupted("interrupted while other ranks were awaited"));
                bail!(
                    "of {size} ranks, {} did not come to {address}:{port} within {} s: start them, or look at what they said when they ended (SDRRL_RANK_TIMEOUT sets the time)",
                    missing(&hellos, size),
                    patience.as_secs()
                );
            }
            let wrong = mistakes(&hellos, differs);
            ensure!(
                wrong.is_empty(),
                "the ranks do not belong together (all of them need the same files, settings and version): {}",
                wrong.join("; ")
            );
            id()
        };
        let id = begin().inspect_err(|_| tell(&streams, &Message::End))?;
        hellos.sort_by_key(|h| h.rank);
        streams.sort_by_key(|(rank, _)| *rank);
        if let Some(other) = hellos.iter().find(|h| h.device[0] != hellos[0].device[0]) {
            let (a, b) = (&hellos[0].device[0], &other.device[0]);
            note!(
                "train: the GPUs are of different kinds (rank 0: {a}, rank {}: {b}): the slowest sets the pace",
                other.rank
            );
        }
        let hosts: Vec<String> = hellos.into_iter().map(|h| h.host).collect();
        let go = Message::Go { id: id.to_vec(), hosts: hosts.clone() };
        streams.iter().try_for_each(|(_, stream)| send(stream, &go))?;
        Ok(Met { streams, hosts, id })
    }

    /// Sends all others home: because there is nothing to do, or (`failed`) because rank 0 has failed.
    pub fn dismiss(&self, failed: bool) {
        let until = Instant::now() + patience().unwrap_or(LEAVE).min(LEAVE);
        let message = if failed { Message::End } else { Message::Nothing };
        let mut told = 1;
        while told < self.ranks.world.size() && Instant::now() < until {
            match self.next() {
                Ok(Some(came)) => {
                    tell(&[(0, came.0)], &message);
                    told += 1;
                }
                Ok(None) => sleep(PAUSE),
                Err(_) => return,
            }
        }
    }

    /// Whoever has come, if it is a rank: strangers at the port are let go.
    fn next(&self) -> Result<Option<(TcpStream, Hello)>> {
        let Ok((stream, from)) = self.listener.accept() else { return Ok(None) };
        stream.set_nonblocking(false).context("listen for the other ranks")?;
        stream.set_read_timeout(Some(FIRST)).context("listen for the other ranks")?;
        stream.set_write_timeout(Some(FIRST)).context("listen for the other ranks")?;
        match receive(&stream) {
            Ok(Some(Message::Hello(hello))) => Ok(Some((stream, *hello))),
            _ => {
                note!("train: what connected from {from} is no rank of this program; it was let go");
                Ok(None)
            }
        }
    }
}

fn tell(streams: &[(usize, TcpStream)], message: &Message) {
    // Whoever does not hear it sees the connection closed.
    streams.iter().for_each(|(_, stream)| drop(send(stream, message)));
}

/// Which of `size` ranks have not come.
fn missing(hellos: &[Hello], size: usize) -> String {
    let absent = (0..size).filter(|r| hellos.iter().all(|h| h.rank != *r));
    let absent: Vec<String> = absent.map(|r| r.to_string()).collect();
    let named = &absent[..absent.len().min(NAMED)];
    match absent.len() - named.len() {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

/// What does not belong together, by rank.
fn mistakes(hellos: &[Hello], differs: &dyn Fn(&Value) -> Vec<String>) -> Vec<String> {
    let mut wrong = vec![];
    let size = hellos[0].size;
    for (i, h) in hellos.iter().enumerate() {
        let who = format!("rank {} on {}", h.rank, h.host);
        if h.rank >= size || h.size != size {
            wrong.push(format!("{who} takes itself for one of {}, rank 0 for one of {size}", h.size));
        }
        let why = h.failed.iter().map(|why| format!("{who}: {why}"));
        wrong.extend(why);
        if h.failed.is_none() {
            let changed = differs(&h.work);
            let plain = changed.iter().map(|d| d.strip_suffix(" changed").unwrap_or(d));
            wrong.extend(plain.map(|d| format!("{who} differs from rank 0 in {d}")));
        }
        for other in &hellos[..i] {
            if other.rank == h.rank {
                wrong.push(format!(
                    "two processes, on {} and {}, take themselves for rank {}",
                    other.host, h.host, h.rank
                ));
            } else if other.host == h.host && other.device == h.device && h.failed.is_none() {
                wrong.push(format!(
                    "ranks {} and {} on {} use the same GPU ({}): one process a GPU",
                    other.rank, h.rank, h.host, h.device[0]
                ));
            }
        }
    }
    wrong
}

/// What rank 0 answered.
pub enum Answer {
    /// Train.
    Go(Met),
    /// There is nothing to do.
    Nothing,
    /// Rank 0 has said what is wrong.
    End,
}

/// Any other rank's side: shows `hello` to rank 0 and waits for the answer.
///
/// # Errors
/// Rank 0 cannot be reached in time, or ends without an answer.
pub fn join(ranks: &Ranks, hello: Hello) -> Result<Answer> {
    let Ranks { address, port, world, .. } = ranks;
    let patience = patience()?;
    let until = Instant::now() + patience;
    let stream = loop {
        match TcpStream::connect((address.as_str(), *port)) {
            Ok(stream) => break stream,
            Err(e) if Instant::now() >= until => {
                return Err(e).with_context(|| {
                    format!(
                        "rank {} of {} cannot reach rank 0 at {address}:{port} within {} s: does it run there, and may this machine connect to it?",
                        world.rank(),
                        world.size(),
                        patience.as_secs()
                    )
                });
            }
            Err(_) => sleep(10 * PAUSE),
        }
    };
    stream.set_read_timeout(Some(2 * patience)).context("talk to rank 0")?;
    stream.set_write_timeout(Some(FIRST)).context("talk to rank 0")?;
    send(&stream, &Message::Hello(Box::new(hello)))?;
    match receive(&stream).context("wait for rank 0")? {
        Some(Message::Go { id, hosts }) => {
            let id = <[u8; ID_BYTES]>::try_from(id).ok().context("rank 0 sent an id of another length")?;
            Ok(Answer::Go(Met { streams: vec![(0, stream)], hosts, id }))
        }
        Some(Message::Nothing) => Ok(Answer::Nothing),
        Some(Message::End) => Ok(Answer::End),
        other => bail!(
            "rank 0 at {address}:{port} ended before training began ({})",
            if other.is_some() { "it said something else" } else { "the connection was closed" }
        ),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::distributed::world::World;

    fn hello(rank: usize) -> Hello {
        let device = ["H".into(), rank.to_string()];
        Hello { rank, size: 3, host: "h".into(), device, work: json!(1), failed: None }
    }

    #[test]
    fn the_first_of_many_missing_ranks_are_named() {
        assert_eq!(missing(&[hello(0), hello(2)], 4), "1, 3");
        assert_eq!(missing(&[hello(0)], 9), "1, 2, 3, 4, 5, 6, 7, 8");
        assert_eq!(missing(&[hello(1)], 65_536), "0, 2, 3, 4, 5, 6, 7, 8 and 65527 more");
    }

    #[test]
    fn a_signal_ends_the_waiting_for_ranks() {
        let world = World::new(0, 2).unwrap();
        let ranks = Ranks { world, local: 0, address: "127.0.0.1".into(), port: 0 };
        let own = Hello { size: 2, ..hello(0) };
        let met = Lobby::open(&ranks).unwrap().meet(own, &|_| vec![], || Ok([0; ID_BYTES]), &|| true);
        let error = met.err().unwrap();
        assert!(matches!(error.downcast_ref(), Some(Error::Interrupted { .. })), "{error:#}");
    }

    #[test]
    fn what_does_not_belong_together_is_named_by_rank() {
        let differs = |work: &Value| if *work == json!(1) { vec![] } else { vec!["lr: 1 -> 2".into()] };
        assert!(mistakes(&[hello(0), hello(2), hello(1)], &differs).is_empty());
        let other = |change: &dyn Fn(&mut Hello)| {
            let mut h = hello(1);
            change(&mut h);
            mistakes(&[hello(0), hello(2), h], &differs).join("; ")
        };
        for (text, part) in [
            (other(&|h| h.work = json!(2)), "rank 1 on h differs from rank 0 in lr: 1 -> 2"),
            (
                mistakes(&[hello(0), Hello { work: json!(2), ..hello(1) }], &|_: &Value| {
                    vec!["the token shards changed".into()]
                })
                .join("; "),
                "rank 1 on h differs from rank 0 in the token shards",
            ),
            (other(&|h| h.device[1] = "2".into()), "ranks 2 and 1 on h use the same GPU"),
            (other(&|h| h.rank = 2), "take themselves for rank 2"),
            (other(&|h| h.size = 4), "one of 4, rank 0 for one of 3"),
            (other(&|h| h.failed = Some("no libnccl".into())), "rank 1 on h: no libnccl"),
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn a_port_in_use_is_named() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let world = World::new(0, 2).unwrap();
        let ranks = Ranks { world, local: 0, address: "127.0.0.1".into(), port };
        let error = format!("{:#}", Lobby::open(&ranks).err().unwrap());
        assert!(error.contains(&format!("127.0.0.1:{port}")) && error.contains("MASTER_PORT"), "{error}");
    }
}
