//! What `--dry-run` prints.
use std::collections::HashSet;

use crate::{
    pipeline::plan::{Planned, Step},
    report::out::say,
};

/// The stages and what would become of each, one that several share once.
pub(super) fn print_plan(steps: Vec<Step>) {
    let mut told = HashSet::new();
    for step in steps.into_iter().filter(|step| told.insert(step.out.clone())) {
        let what = match step.planned {
            Planned::Unchanged => "unchanged".into(),
            Planned::Made => "will run".into(),
            Planned::GoesOn => "will be resumed".into(),
            Planned::Again(why) => format!("will run again: {}", why.join("; ")),
        };
        say!("{:28} {what}  ({})", step.label, step.out.display());
    }
}
