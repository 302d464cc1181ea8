//! One stage of a recipe by itself: a cluster's scheduler starts every stage, or every part of one, as a job of its own (`scripts/slurm`, `scripts/kubernetes`).
//!
//! The recipe is planned up to that stage, as for `--dry-run`: the stages that it reads must be finished with the recipe's settings. Then it runs, with the same
//! folder, settings and bytes as in a whole run. No folder but the stage's own is written to.
use std::{
    cell::{Cell, RefCell},
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};

use super::run::Args;
use crate::{
    data::files::MANIFEST,
    distributed::ranks::Ranks,
    error::Error,
    pipeline::{
        interrupt::interrupted,
        plan::{self, is_to_be_made},
        rows::Part,
        work_dir::Room,
    },
    report::out::{self, say},
};

/// Between two looks at a folder that another process is filling.
const PAUSE: Duration = Duration::from_secs(1);

/// What `--stage` and `--stages` ask for.
pub(super) struct Alone {
    /// The stage; none to list them.
    asked: Option<String>,
    pub(super) part: Part,
    wait: Duration,
    seen: RefCell<Vec<Seen>>,
    ran: Cell<bool>,
    /// What the stage reads and is not finished.
    unfinished: RefCell<Option<PathBuf>>,
}

/// A stage of the recipe.
struct Seen {
    name: String,
    kind: &'static str,
    out: PathBuf,
    reads: Vec<String>,
}

impl Alone {
    /// Nothing for a whole run.
    pub fn of(args: &Args) -> Option<Alone> {
        (args.stage.is_some() || args.stages).then(|| Alone {
            asked: args.stage.clone(),
            part: args.part,
            wait: Duration::from_secs(args.wait),
            seen: RefCell::default(),
            ran: Cell::new(false),
            unfinished: RefCell::default(),
        })
    }

    /// Lists the stages, or runs the one that is asked for; `plan` walks through the recipe.
    ///
    /// # Errors
    /// A stage that the recipe does not have, or whose input is not finished; the stage's.
    pub fn run(&self, check: &dyn Fn() -> Result<()>, plan: &dyn Fn() -> Result<()>) -> Result<()> {
        let Some(asked) = &self.asked else {
            out::silently(|| plan::collect(plan))?;
            for stage in self.seen.borrow().iter() {
                say!("{} {} {}", stage.name, stage.kind, stage.reads.join(" "));
            }
            return Ok(());
        };
        // Of several ranks the first says what is wrong.
        if Ranks::of_environment()?.is_none_or(|ranks| ranks.world.rank() == 0) {
            check()?;
        }
        let until = Instant::now() + self.wait;
        while let Err(e) = out::silently(|| plan::collect(plan)) {
            let unfinished = self.unfinished.take().filter(|_| Instant::now() < until);
            let Some(folder) = unfinished else { return Err(e) };
            wait_for(&folder, until)?;
            self.seen.borrow_mut().clear();
        }
        let names: Vec<String> = self.seen.borrow().iter().map(|stage| stage.name.clone()).collect();
        let none = || format!("the recipe has no stage `{asked}`: it has {}", names.join(", "));
        ensure!(self.ran.get(), Error::setting("stage", none()));
        Ok(())
    }

    /// A stage that the recipe comes to, inside of the plan; `work` plans it or, outside of a plan, runs it.
    pub fn stage(
        &self,
        room: Room,
        out: &Path,
        inputs: &[&Path],
        work: &dyn Fn() -> Result<()>,
    ) -> Result<()> {
        let (name, kind) = (room.name(), kind(room));
        let of_input = |seen: &Seen| inputs.contains(&seen.out.as_path()).then(|| seen.name.clone());
        let reads = self.seen.borrow().iter().filter_map(of_input).collect();
        self.seen.borrow_mut().push(Seen { name: name.clone(), kind, out: out.into(), reads });
        match &self.asked {
            // What comes behind it is not looked at.
            None => return Ok(()),
            Some(_) if self.ran.get() => return Ok(()),
            Some(asked) if *asked != name => return work(),
            Some(_) => {}
        }
        let whole = || format!("stage {name} is not divided by rows: leave --part out");
        ensure!(kind == PARTS || self.part == Part::default(), Error::setting("part", whole()));
        if kind != RANKS {
            one_process()?;
        }
        if let Some(input) = inputs.iter().find(|input| is_to_be_made(input)) {
            *self.unfinished.borrow_mut() = Some(input.to_path_buf());
            bail!(
                "stage {name} reads {}, which is not finished, or was made with other settings: run that stage first, with all its parts (--wait SECONDS waits for one that another process is finishing)",
                input.display()
            );
        }
        self.ran.set(true);
        out::aloud(|| plan::for_real(work))
    }
}

const PARTS: &str = "parts";
const RANKS: &str = "ranks";

/// Who can share a stage's work.
fn kind(room: Room) -> &'static str {
    match room {
        Room::Generate | Room::Translate | Room::Score | Room::Filter | Room::CodeSwitch => PARTS,
        Room::Train(_) => RANKS,
        _ => "one",
    }
}

/// Until the folder's stage may have finished: on a network file system that is seen late.
fn wait_for(folder: &Path, until: Instant) -> Result<()> {
    loop {
        sleep(PAUSE);
        let stopped = "stopped while waiting for another stage: run the same command again to resume";
        ensure!(!interrupted(), Error::interrupted(stopped));
        if folder.join(MANIFEST).exists() || Instant::now() >= until {
            return Ok(());
        }
    }
}

/// The error of a process that a launcher has started beside others, where only one may work.
pub(super) fn one_process() -> Result<()> {
    let message = "several ranks run one stage of a recipe, its training: --stage train-...; everything else is run by one process";
    ensure!(Ranks::of_environment()?.is_none(), Error::setting("stage", message));
    Ok(())
}
