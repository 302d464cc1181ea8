//! A stage, and the one function that runs stages: it compares identities, locks, begins, lets the stage write, checks its counts, finishes.
//!
//! A new stage is one file with a type that implements [`Stage`], and one line where it is called.
use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use crate::error::Error;
use anyhow::{Context, Result, bail};
use serde::Serialize;

pub use super::made::{Made, Ran};
use super::{
    accounts, clock,
    identity::{Identity, Inputs},
    left_behind::{files_of, in_order_of_removal, refuse_foreign},
    lock::{self, Held},
    manifest::{FolderState, Manifest},
    placement::Placement,
    plan,
    rows::Part,
};
use crate::{
    data::{
        files::{PENDING, remove_if_there, sweep, write_atomic, write_error},
        language_id,
        row_shard::write_rows,
    },
    device::vectors::other_level,
    report::out::{note, say},
};

/// Work that turns files and settings into the files of one folder.
pub trait Stage {
    /// In manifests and messages.
    const NAME: &'static str;
    /// The files that it makes in its folder, by name with at most one `*`: none of them is replaced unless a stage wrote it, and what other settings
    /// left of them goes before work begins.
    const FILES: &'static [&'static str];

    /// What it is called on the screen.
    fn label(&self) -> String {
        Self::NAME.to_string()
    }

    /// Its folder.
    fn out(&self) -> &Path;

    /// The settings that decide its bytes, without its placement.
    fn identity(&self) -> Result<Identity>;

    /// The files that decide its bytes.
    fn inputs(&self) -> Result<Inputs>;

    /// Its share of the work.
    fn part(&self) -> Part {
        Part::default()
    }

    /// What happens to a finished result made from other inputs or settings.
    fn replaces(&self) -> Replace {
        Replace::AndSayWhy
    }

    /// What it does while another process works in its folder.
    fn others(&self) -> Others {
        Others::Refuse
    }

    /// Whether its folder appears whole or not at all, for folders whose contents other programs look at: the work is done in a hidden folder beside
    /// it, always from the beginning, which is renamed at the end. An existing folder is never replaced.
    fn whole(&self) -> bool {
        false
    }

    /// Whether nothing is printed about it.
    fn quiet(&self) -> bool {
        false
    }

    /// Whether nothing is printed where there is nothing to do.
    fn quiet_if_unchanged(&self) -> bool {
        self.quiet()
    }

    /// How it holds a model's weights and where it computes, if it does: that decides its bytes, too, and a device that is not there is refused
    /// before anything is begun or removed.
    fn placement(&self) -> Option<Placement> {
        None
    }

    /// What must be right with its folder, before anything is begun or removed; `expected` is what the stage will leave there.
    fn check_folder(&self, _expected: &Manifest) -> Result<()> {
        Ok(())
    }

    /// What must be right elsewhere, once all is right with its folder, and still before anything is begun or removed: whoever takes part comes to
    /// it. It may take long, and others wait for the folder or are told who has it.
    fn meet(&self, _expected: &Manifest) -> Result<()> {
        Ok(())
    }

    /// Whether work that was begun with other settings (the manifest that it would have left) is continued rather than begun again.
    fn goes_on(&self, _begun: &Manifest, _expected: &Manifest) -> bool {
        false
    }

    /// The work. Called again after a kill, with what is there.
    fn run(&mut self, open: &mut Open) -> Result<Made>;
}

/// What happens to a finished result made from other inputs or settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replace {
    /// It is made again, and the differences are printed.
    AndSayWhy,
    /// It stays: an error with the differences, and with this advice.
    Never(&'static str),
}

/// What a stage does while another process works in its folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Others {
    /// It ends with an error that names the other.
    Refuse,
    /// It waits for one that makes the same; whoever makes something else is in the way.
    Await,
}

/// A folder in which work has begun. Only [`run`] makes one, under the folder's lock, and only through it a stage's files are written and finished.
pub struct Open {
    manifest: Manifest,
    dir: PathBuf,
    /// What the folder is to be called in the end, where that is another name ([`Stage::whole`]).
    place: Option<PathBuf>,
    part: Part,
    /// Rows that stood in the folders that the stage reads.
    came_in: Option<usize>,
    _held: Held,
}

impl Open {
    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where a file of the stage is to be written.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The share of the work that is to be done.
    pub fn part(&self) -> Part {
        self.part
    }

    /// The number of this work: equal inputs and settings have the same.
    pub fn job(&self) -> u64 {
        self.manifest.job()
    }

    /// What the stage was opened with.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Writes a file whole or not at all.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        write_atomic(&self.path(name), bytes)
    }

    /// Writes all rows of the folder, `rows_per_shard` in a file, and remembers how many there must be; returns how many.
    pub fn write_rows<T: Serialize>(
        &mut self,
        rows: impl IntoIterator<Item = T>,
        rows_per_shard: usize,
    ) -> Result<usize> {
        let n = write_rows(&self.dir, rows, rows_per_shard)?;
        self.manifest.rows = Some(n);
        Ok(n)
    }

    pub(super) fn expect_rows(&mut self, n: usize) {
        self.manifest.rows = Some(n);
    }

    /// Ends the work, unless another part that ended at the same time has.
    fn finish(mut self, made: Made) -> Result<()> {
        self.manifest.counts = made.counts;
        self.manifest.summary = made.summary;
        let dir = self.dir.clone();
        let (stage, counts) = (&self.manifest.stage, self.manifest.counts.as_ref());
        accounts::check(stage, self.came_in, counts, self.manifest.rows, &dir)?;
        let mutex = lock::mutex(&dir)?;
        if self.manifest.state(&dir)? != FolderState::Done {
            self.manifest.finish(&dir)?;
        }
        // Its file goes before the folder does.
        drop(mutex);
        self.place.map_or(Ok(()), |place| fs::rename(&dir, &place).map_err(|e| write_error(&place, e)))
    }

    /// After an error.
    fn abandon(self) {
        if self.place.is_some() {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// The error of a stage whose folder is another's, or holds files of others under its names, before whatever must be done first.
pub fn check_place<S: Stage>(dir: &Path) -> Result<()> {
    refuse_foreign(dir, S::NAME, S::FILES)
}

/// Runs a stage: skipped where its folder holds the same result, else begun, run and finished.
pub fn run<S: Stage>(stage: &mut S) -> Result<Ran> {
    if plan::planning() {
        return plan::note(stage);
    }
    let Some(mut open) = open(stage)? else {
        if !stage.quiet_if_unchanged() {
            say!("{}: unchanged, skipped", stage.label());
        }
        return Ok(Ran::Unchanged);
    };
    let began = Instant::now();
    let made = match stage.run(&mut open) {
        Ok(made) => made,
        Err(e) => {
            open.abandon();
            return Err(e);
        }
    };
    clock::note(stage.out(), began.elapsed().as_secs_f64());
    let (line, unfinished) = (made.line.clone(), made.unfinished);
    if !unfinished {
        open.finish(made)?;
    }
    if let Some(line) = line {
        say!("{line}");
    }
    Ok(if unfinished { Ran::Part } else { Ran::Made })
}

/// What the stage will leave.
pub fn expected<S: Stage>(stage: &S, inputs: Inputs) -> Result<Manifest> {
    // Alarms, and so the bytes, depend on who judges languages.
    let judges = ["generate", "translate", "parallel", "eval"].contains(&S::NAME);
    let inputs = inputs.maybe("language identifier", language_id::model_file().filter(|_| judges));
    let identity = stage.identity()?;
    let identity = match stage.placement() {
        Some(placement) => identity.placed(placement)?,
        None => identity,
    };
    Manifest::expected(S::NAME, &inputs, &identity)
}

/// Compares what is asked with what is there, and begins; `None` where nothing is to be done.
fn open<S: Stage>(stage: &S) -> Result<Option<Open>> {
    let dir = stage.out().to_path_buf();
    let inputs = stage.inputs()?;
    let came_in = accounts::came_in(&inputs)?;
    let manifest = expected(stage, inputs)?;
    if stage.whole() {
        return open_whole(stage, manifest);
    }
    let done = || -> Result<bool> { Ok(manifest.state(&dir)? == FolderState::Done) };
    if done()? && !dir.join(PENDING).exists() && !lock::any(&dir) {
        // Of a process that was killed while it began something else here.
        sweep(&dir);
        return Ok(None);
    }
    let made = !dir.exists();
    fs::create_dir_all(&dir).map_err(|e| write_error(&dir, e))?;
    loop {
        let mutex = match lock::mutex(&dir) {
            Err(e) if lock::is_denied(&e) && done()? => return Ok(None),
            mutex => mutex?,
        };
        let held = match lock::part(&dir, stage.part(), manifest.job(), &mutex)? {
            Ok(held) => held,
            Err(holder) if stage.others() == Others::Await && holder.job == manifest.job() => {
                drop(mutex);
                lock::pause()?;
                continue;
            }
            // Whoever has ended the same work is about to leave.
            Err(holder) if holder.job == manifest.job() && done()? => {
                drop((mutex, holder));
                return Ok(None);
            }
            Err(holder) => bail!(lock::in_the_way(&stage.label(), &dir, &holder)),
        };
        if done()? {
            // Of a process that was killed right after it had written the manifest.
            remove_if_there(&dir.join(PENDING))?;
            sweep(&dir);
            return Ok(None);
        }
        if let Err(e) = begin(stage, &manifest, &dir) {
            if made {
                drop((held, mutex));
                // Nothing was begun, so nothing is left.
                let _ = fs::remove_dir(&dir);
            }
            return Err(e);
        }
        return Ok(Some(Open { manifest, dir, place: None, part: stage.part(), came_in, _held: held }));
    }
}

/// As [`open`], for a stage whose folder appears whole or not at all.
fn open_whole<S: Stage>(stage: &S, manifest: Manifest) -> Result<Option<Open>> {
    let place = stage.out().to_path_buf();
    let name = place.file_name().context("the output folder has no name")?.to_string_lossy();
    // Beside the result, so that it can be renamed; nobody else has this name, so that what a killed run left there is ours.
    let dir = place.with_file_name(format!(".{name}.sdrrl-{}.partial", S::NAME));
    if manifest.state(&place)? == FolderState::Done {
        return Ok(None);
    }
    let beside = place.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(beside).map_err(|e| write_error(beside, e))?;
    let held = lock::beside(&place, &stage.label())?;
    let why = match manifest.state(&place)? {
        FolderState::Done => return Ok(None),
        FolderState::Changed(why) => format!(" and is of other inputs or settings ({})", some_of(&why)),
        FolderState::Absent => String::new(),
    };
    if place.exists() {
        let message = format!("{} exists{why}: choose another --out, or remove it", place.display());
        bail!(Error::exists(&place, message));
    }
    stage.check_folder(&manifest)?;
    if dir.exists() {
        fs::remove_dir_all(&dir).map_err(|e| write_error(&dir, e))?;
    }
    manifest.begin(&dir)?;
    Ok(Some(Open { manifest, dir, place: Some(place), part: stage.part(), came_in: None, _held: held }))
}

/// Makes the folder ready, under its lock.
fn begin<S: Stage>(stage: &S, manifest: &Manifest, dir: &Path) -> Result<()> {
    stage.check_folder(manifest)?;
    refuse_foreign(dir, S::NAME, S::FILES)?;
    if let Some(placement) = stage.placement() {
        placement.device.check_there()?;
    }
    let state = manifest.state(dir)?;
    let pending = Manifest::pending(dir).filter(|_| state == FolderState::Absent);
    match (&state, stage.replaces()) {
        (FolderState::Changed(why), Replace::Never(advice)) => {
            let (name, why) = (S::NAME, some_of(why));
            let message = format!(
                "{} holds a finished {name} of other inputs or settings ({why}): {advice}",
                dir.display()
            );
            bail!(Error::exists(dir, message))
        }
        (FolderState::Changed(why), Replace::AndSayWhy) => {
            stage.meet(manifest)?;
            if !stage.quiet() {
                note!("{}: made again, since {}: {}", stage.label(), dir.display(), some_of(why));
            }
        }
        _ => stage.meet(manifest)?,
    }
    let same = pending.as_ref().is_some_and(|p| p.job() == manifest.job() || stage.goes_on(p, manifest));
    if let Some(told) = pending.filter(|_| same).and_then(|p| other_level(&p.processor))
        && !stage.quiet()
    {
        note!("{}: {told}", stage.label());
    }
    if !same {
        // First, so that a kill in between leaves a note of other work, and the rest goes next time.
        for name in in_order_of_removal(files_of(dir, S::FILES)?, dir) {
            remove_if_there(&dir.join(name))?;
        }
    }
    sweep(dir);
    manifest.begin(dir)
}

/// The first few of many differences.
fn some_of(why: &[String]) -> String {
    const SHOWN: usize = 8;
    let more = why.len().saturating_sub(SHOWN);
    let shown = why[..why.len() - more].join("; ");
    if more > 0 { format!("{shown}; and {more} more") } else { shown }
}
