//! The chunks of shards in a pipeline of threads: one reads and prepares, the caller's or those of several devices compute, one finishes and appends.
//!
//! Chunks stay in order and end where a shard does, so that the files have the same bytes as without the pipeline; the queues between the threads are
//! bounded, and so is memory. Whichever part fails, all rows before the failing chunk are written first.
use std::{
    ops::Range,
    panic::resume_unwind,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::{self, ScopedJoinHandle},
};

use crate::error::Error;
use anyhow::{Context, Result, ensure};
use serde::{Serialize, de::DeserializeOwned};
use tracing::info_span;

use super::{
    devices::{Computing, Job},
    interrupt::interrupted,
};
use crate::{
    data::row_shard::{RowShard, ShardWriter},
    report::progress::Progress,
};

/// A stage's work on a chunk of rows `I`, in three parts that run at the same time, each on another chunk.
pub struct Parts<'a, 'c, I, P, C, O> {
    /// On a thread of its own, what needs no model: tokenising.
    pub prepare: &'a (dyn Fn(Vec<I>) -> Result<P> + Sync),
    /// Where the models are.
    pub compute: Computing<'c, P, C>,
    /// On a third thread: as many rows as came in, in their order.
    pub finish: &'a (dyn Fn(C) -> Result<Vec<O>> + Sync),
    /// Chunks that may be prepared before a device computes them: 1, unless preparing a chunk only begins its work elsewhere.
    pub ahead: usize,
}

/// A shard to read, and the one to write of it.
pub(super) struct Pair<'a> {
    pub from: &'a RowShard,
    pub to: PathBuf,
}

/// Where a chunk belongs: its shard, which the shard's first chunk brings the writer of.
struct Place<'a> {
    shard: &'a RowShard,
    writer: Option<ShardWriter>,
}

/// What is computed of some rows, on the way to the disk.
type Computed<'a, C> = (Range<usize>, Place<'a>, C);

/// Writes what `parts` make of the rows of `shards`, each from the row on that an earlier run has reached. `job` is the number of the work.
pub(super) fn map_shards<I: DeserializeOwned, P: Send, C: Send, O: Serialize>(
    (stage, job): (&str, u64),
    shards: &[Pair],
    chunk: usize,
    parts: &mut Parts<I, P, C, O>,
    progress: &mut Progress,
) -> Result<()> {
    let (prepare, finish) = (parts.prepare, parts.finish);
    let about = |shard: &RowShard, rows: &Range<usize>| {
        format!("{stage}: rows {}..{} of {}", rows.start, rows.end, shard.path().display())
    };
    thread::scope(|scope| {
        let (to_compute, prepared) = sync_channel(parts.ahead * parts.compute.devices());
        let (to_write, computed) = sync_channel(1);
        let reading = scope.spawn(move || read(shards, job, chunk, prepare, &to_compute));
        let writing = scope.spawn(move || write(stage, computed, finish, &about));
        // Whoever ends first closes its channels, upon which the others end too.
        let result =
            parts.compute.each(&mut until_interrupted(prepared), &mut |rows, place: Place, computed| {
                let computed = computed.map_err(|e| match e.downcast_ref() {
                    Some(Error::Interrupted { .. }) => e,
                    _ => e.context(about(place.shard, &rows)),
                })?;
                let (n, found) = (rows.len(), place.writer.as_ref().map_or(0, ShardWriter::len));
                to_write.send((rows, place, computed)).ok().context("the rows cannot be written")?;
                progress.skip(found);
                progress.advance(n);
                Ok(())
            });
        drop(to_write);
        let written = join(writing);
        let read = join(reading);
        // The writer's rows are the earlier ones.
        written.and(result).and(read)
    })
}

fn read<'a, I: DeserializeOwned, P>(
    shards: &'a [Pair],
    job: u64,
    chunk: usize,
    prepare: &dyn Fn(Vec<I>) -> Result<P>,
    to: &SyncSender<Job<Place<'a>, P>>,
) -> Result<()> {
    for Pair { from: shard, to: path } in shards {
        let (writer, done) = ShardWriter::open_or_resume(path, job)?;
        ensure!(
            done <= shard.len(),
            "{} has more rows than {}: delete it",
            path.display(),
            shard.path().display()
        );
        if done == shard.len() {
            writer.finish()?;
            continue;
        }
        let mut writer = Some(writer);
        for start in (done..shard.len()).step_by(chunk) {
            let rows = start..shard.len().min(start + chunk);
            let span = info_span!("read", first = rows.start, rows = rows.len()).entered();
            let prepared = rows.clone().map(|i| shard.get(i)).collect::<Result<Vec<I>>>().and_then(prepare);
            drop(span);
            let failed = prepared.is_err();
            let about = Place { shard, writer: writer.take() };
            if to.send(Job { rows, about, job: prepared }).is_err() || failed {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// The chunks as they are read; after a signal, that it was asked to stop.
fn until_interrupted<'a, P>(
    prepared: Receiver<Job<Place<'a>, P>>,
) -> impl Iterator<Item = Job<Place<'a>, P>> {
    prepared.into_iter().map(|chunk| {
        let stopped = |shard: &RowShard| {
            let (row, of, name) = (chunk.rows.start, shard.len(), shard.name());
            Error::interrupted(format!(
                "stopped at row {row} of {of} in {name}: run the same command again to resume"
            ))
        };
        if interrupted() { Job { job: Err(stopped(chunk.about.shard).into()), ..chunk } } else { chunk }
    })
}

fn write<'a, C, O: Serialize>(
    stage: &str,
    computed: Receiver<Computed<'a, C>>,
    finish: &dyn Fn(C) -> Result<Vec<O>>,
    about: &dyn Fn(&RowShard, &Range<usize>) -> String,
) -> Result<()> {
    let mut writer = None;
    for (rows, place, computed) in computed {
        let _span = info_span!("write", first = rows.start, rows = rows.len()).entered();
        let out = finish(computed).map_err(|e| e.context(about(place.shard, &rows)))?;
        ensure!(out.len() == rows.len(), "stage {stage} gave {} rows for {}", out.len(), rows.len());
        writer = place.writer.or(writer);
        let own = writer.as_mut().context("a shard has no writer")?;
        out.iter().try_for_each(|row| own.push(row))?;
        own.flush()?;
        if rows.end == place.shard.len() {
            writer.take().map_or(Ok(()), ShardWriter::finish)?;
        }
    }
    Ok(())
}

/// What the thread returned; its panic goes on here.
fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}

/// What several threads need: made by the first to ask, and only if one does.
pub struct Shared<'a, T> {
    make: Box<dyn Fn() -> Result<T> + Sync + 'a>,
    made: Mutex<Option<Arc<T>>>,
}

impl<'a, T> Shared<'a, T> {
    /// By `make`.
    pub fn new(make: impl Fn() -> Result<T> + Sync + 'a) -> Shared<'a, T> {
        Shared { make: Box::new(make), made: Mutex::new(None) }
    }

    /// It, if anybody asked.
    pub fn made(&self) -> Option<Arc<T>> {
        self.made.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// It, or why it could not be made.
    pub fn get(&self) -> Result<Arc<T>> {
        // A panic while making it leaves nothing behind.
        let mut made = self.made.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(made) = &*made {
            return Ok(made.clone());
        }
        Ok(made.insert(Arc::new((self.make)()?)).clone())
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc::channel, time::Duration};

    use serde_json::{Value, json};

    use super::*;
    use crate::pipeline::devices::{Work, on_devices};

    fn shard(dir: &std::path::Path, rows: usize) -> RowShard {
        let path = dir.join("in.jsonl");
        std::fs::write(&path, (0..rows).map(|i| format!("{{\"i\":{i}}}\n")).collect::<String>()).unwrap();
        RowShard::open(&path).unwrap()
    }

    fn writer(dir: &std::path::Path) -> ShardWriter {
        ShardWriter::open_or_resume(&dir.join("rows-00000.jsonl"), 1).unwrap().0
    }

    fn map<P: Send, C: Send>(
        dir: &std::path::Path,
        rows: usize,
        chunk: usize,
        mut parts: Parts<Value, P, C, Value>,
    ) -> Result<()> {
        let from = shard(dir, rows);
        let pair = Pair { from: &from, to: dir.join("rows-00000.jsonl") };
        map_shards(("test", 1), &[pair], chunk, &mut parts, &mut Progress::new("test", rows))
    }

    fn numbers(rows: &[Value]) -> Vec<u64> {
        rows.iter().map(|r| r["i"].as_u64().unwrap()).collect()
    }

    /// Every part waits, for its first chunk, until the part before it has begun the next one: without overlap this would never end.
    #[test]
    fn three_chunks_are_at_work_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let (preparing, computing) = (channel::<()>(), channel::<()>());
        let (prepares, computes) = (Mutex::new(preparing.0), computing.0);
        let (prepare_seen, compute_seen) = (preparing.1, Mutex::new(computing.1));
        let wait = Duration::from_secs(60);
        map(
            dir.path(),
            6,
            2,
            Parts {
                prepare: &|rows: Vec<Value>| {
                    if numbers(&rows) == [2, 3] {
                        prepares.lock().unwrap().send(()).unwrap();
                    }
                    Ok(numbers(&rows))
                },
                compute: Computing::Here(&mut |rows: Vec<u64>| {
                    match rows[0] {
                        0 => prepare_seen.recv_timeout(wait).unwrap(),
                        2 => computes.send(()).unwrap(),
                        _ => {}
                    }
                    Ok(rows)
                }),
                finish: &|rows: Vec<u64>| {
                    if rows[0] == 0 {
                        compute_seen.lock().unwrap().recv_timeout(wait).unwrap();
                    }
                    Ok(rows.iter().map(|i| json!({"j": i})).collect())
                },
                ahead: 1,
            },
        )
        .unwrap();
        let text = std::fs::read_to_string(dir.path().join("rows-00000.jsonl")).unwrap();
        assert_eq!(text, (0..6).map(|i| format!("{{\"j\":{i}}}\n")).collect::<String>());
    }

    /// Whichever part fails at row 4, the rows before its chunk are there and the error says which rows; then it goes on to the same bytes.
    #[test]
    fn a_failure_in_any_part_keeps_the_rows_before_it_and_names_the_chunk() {
        for part in ["prepare", "compute", "finish", "count"] {
            let dir = tempfile::tempdir().unwrap();
            let run = |failing: &str| {
                let may_fail = |name: &str, rows: Vec<Value>| -> Result<Vec<Value>> {
                    ensure!(name != failing || numbers(&rows)[0] != 4, "{name} failed");
                    Ok(rows)
                };
                map(
                    dir.path(),
                    9,
                    2,
                    Parts {
                        prepare: &|rows| may_fail("prepare", rows),
                        compute: Computing::Here(&mut |rows| may_fail("compute", rows)),
                        finish: &|rows: Vec<Value>| {
                            let keep =
                                if failing == "count" && numbers(&rows)[0] == 4 { 1 } else { rows.len() };
                            Ok(may_fail("finish", rows)?.into_iter().take(keep).collect::<Vec<_>>())
                        },
                        ahead: 1,
                    },
                )
            };
            let error = format!("{:#}", run(part).err().unwrap());
            let named = if part == "count" { "gave 1 rows for 2".into() } else { format!("{part} failed") };
            assert!(error.contains(&named), "{error}");
            assert!(part == "count" || error.contains("rows 4..6 of"), "{error}");
            assert_eq!(writer(dir.path()).len(), 4, "{part}");
            run("").unwrap();
            let text = std::fs::read_to_string(dir.path().join("rows-00000.jsonl")).unwrap();
            assert_eq!(text, std::fs::read_to_string(dir.path().join("in.jsonl")).unwrap(), "{part}");
        }
    }

    /// Chunks of several shards are at work at once; those behind a failure are lost, those before it are not.
    #[test]
    fn shards_are_filled_in_order_whichever_device_computes() {
        let dir = tempfile::tempdir().unwrap();
        let shards: Vec<RowShard> = (0..4)
            .map(|i| {
                let own = dir.path().join(format!("in-{i}"));
                std::fs::create_dir(&own).unwrap();
                shard(&own, [5, 0, 4, 3][i])
            })
            .collect();
        let run = |device: &str, failing: usize| {
            let to = |i: usize| dir.path().join(format!("rows-{i:05}.jsonl"));
            let missing = (0..4).filter(|&i| !to(i).exists());
            let pairs: Vec<Pair> = missing.map(|i| Pair { from: &shards[i], to: to(i) }).collect();
            let compute = |_: &mut (), rows: Vec<Value>| {
                // The earlier ones take longer.
                thread::sleep(Duration::from_millis(5 - numbers(&rows)[0]));
                ensure!(rows.len() != failing, "failed");
                Ok(rows)
            };
            let work = Work { load: &|_| Ok(()), compute: &compute, end: &|_| Ok(()) };
            let body = |compute: Computing<Vec<Value>, Vec<Value>>| {
                let mut parts = Parts { prepare: &Ok, compute, finish: &Ok::<Vec<Value>, _>, ahead: 1 };
                map_shards(("test", 1), &pairs, 2, &mut parts, &mut Progress::new("test", 12))
            };
            on_devices(device.parse().unwrap(), &work, body).0
        };
        // The only chunk of one row is the first shard's last.
        let error = format!("{:#}", run("emulated:0-2", 1).unwrap_err());
        assert!(error.contains("rows 4..5 of") && error.contains("on emulated:"), "{error}");
        assert_eq!(writer(dir.path()).len(), 4);
        assert!(!dir.path().join("rows-00002.jsonl").exists());
        run("emulated:0-1", 9).unwrap();
        for i in 0..4 {
            let text = |name: String| std::fs::read_to_string(dir.path().join(name)).unwrap();
            assert_eq!(text(format!("rows-{i:05}.jsonl")), text(format!("in-{i}/in.jsonl")));
        }
    }

    #[test]
    #[should_panic(expected = "in a part")]
    fn a_panic_in_a_part_comes_out() {
        let dir = tempfile::tempdir().unwrap();
        let _ = map(
            dir.path(),
            4,
            1,
            Parts {
                prepare: &|rows: Vec<Value>| Ok(rows),
                compute: Computing::Here(&mut |rows: Vec<Value>| Ok(rows)),
                finish: &|rows: Vec<Value>| {
                    if numbers(&rows) == [2] { panic!("in a part") } else { Ok(rows) }
                },
                ahead: 1,
            },
        );
    }

    #[test]
    fn shared_things_are_made_once_and_a_failure_is_told_again() {
        let count = Mutex::new(0);
        let shared = Shared::new(|| {
            *count.lock().unwrap() += 1;
            ensure!(*count.lock().unwrap() > 1, "not yet");
            Ok(7)
        });
        assert!(shared.get().is_err());
        assert_eq!((*shared.get().unwrap(), *shared.get().unwrap()), (7, 7));
        assert_eq!(*count.lock().unwrap(), 2);
    }
}
