//! What a run would do, without doing it: inside of [`collect`] every stage is compared with its folder, and none begins.
use std::{
    cell::RefCell,
    path::{Path, PathBuf},
};

use anyhow::Result;

use super::{
    identity::readable,
    left_behind::refuse_foreign,
    manifest::{FolderState, Manifest},
    stage::{Ran, Stage, expected},
};

/// What is to happen to a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Planned {
    /// The same result is there.
    Unchanged,
    /// Nothing is there.
    Made,
    /// It was begun, and goes on.
    GoesOn,
    /// Something else is there, and why it is not taken.
    Again(Vec<String>),
}

/// A stage of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What it is called on the screen.
    pub label: String,
    /// Its folder.
    pub out: PathBuf,
    /// What is to happen to it.
    pub planned: Planned,
}

thread_local! {
    static STEPS: RefCell<Option<Vec<Step>>> = const { RefCell::new(None) };
}

/// Whether stages are only planned.
pub fn planning() -> bool {
    STEPS.with_borrow(Option::is_some)
}

/// Whether `path` is what a stage of the plan has yet to make.
pub fn is_to_be_made(path: &Path) -> bool {
    let makes = |step: &Step| step.planned != Planned::Unchanged && path.starts_with(&step.out);
    STEPS.with_borrow(|steps| steps.iter().flatten().any(makes))
}

/// Calls `work`, in which no stage runs; the stages that it would have run, in order.
///
/// # Errors
/// Whatever is wrong before the first stage.
pub fn collect(work: impl FnOnce() -> Result<()>) -> Result<Vec<Step>> {
    STEPS.set(Some(vec![]));
    let done = work();
    let steps = STEPS.take().unwrap_or_default();
    done.map(|()| steps)
}

/// Runs what `work` calls, inside of [`collect`]: for the one stage that is not only planned.
pub fn for_real<T>(work: impl FnOnce() -> T) -> T {
    let steps = STEPS.take();
    let done = work();
    STEPS.set(steps);
    done
}

/// Adds a stage to the plan.
pub(super) fn note<S: Stage>(stage: &S) -> Result<Ran> {
    let to_be_made = STEPS.with_borrow(|steps| {
        let all = steps.iter().flatten().filter(|s| s.planned != Planned::Unchanged);
        all.map(|s| s.out.clone()).collect::<Vec<_>>()
    });
    let planned = judge(stage, &to_be_made)?;
    let step = Step { label: stage.label(), out: stage.out().into(), planned };
    STEPS.with_borrow_mut(|steps| steps.get_or_insert_default().push(step));
    Ok(Ran::Unchanged)
}

fn judge<S: Stage>(stage: &S, to_be_made: &[PathBuf]) -> Result<Planned> {
    let dir = stage.out();
    if !stage.whole() {
        refuse_foreign(dir, S::NAME, S::FILES)?;
    }
    let there = Manifest::load(dir).ok().flatten().is_some();
    let after = |name: &str| match there {
        true => Planned::Again(vec![format!("{} will change", readable(name))]),
        false => Planned::Made,
    };
    let is_new = |path: &Path| to_be_made.iter().any(|made| path.starts_with(made));
    let inputs = match stage.inputs() {
        Ok(inputs) => inputs,
        // A folder that an earlier stage has yet to fill.
        Err(_) if !to_be_made.is_empty() => return Ok(after("its input")),
        Err(e) => return Err(e),
    };
    if let Some((name, _)) = inputs.0.iter().find(|(_, path)| is_new(path)) {
        return Ok(after(name));
    }
    let expected = expected(stage, inputs)?;
    Ok(match expected.state(dir)? {
        FolderState::Done => Planned::Unchanged,
        FolderState::Changed(why) => Planned::Again(why),
        FolderState::Absent => match Manifest::pending(dir) {
            Some(begun) if begun.job() == expected.job() => Planned::GoesOn,
            _ => Planned::Made,
        },
    })
}
