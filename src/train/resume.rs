//! Going on from a checkpoint: what must be equal, and what may differ and is told.
use std::path::Path;

use anyhow::{Result, ensure};
use serde_json::{Map, Value};

use super::{
    checkpoint::State,
    run_types::{CHANGEABLE, TrainEvent, TrainerSettings},
};
use crate::device::vectors;

/// The state before the first step.
pub(super) fn begins(settings: &TrainerSettings) -> State {
    let (budgets, optimizer) = (vec![(0, settings.batch_tokens)], settings.optimizer.kind);
    State { budgets, optimizer, ..State::fresh(settings.identity.clone()) }
}

/// A checkpoint's state under what may differ from the run that wrote it; the difference is told and remembered.
pub(super) fn goes_on(
    mut state: State,
    settings: &TrainerSettings,
    on_event: &mut dyn FnMut(TrainEvent),
) -> State {
    let last = state.budgets.last().map(|(_, tokens)| *tokens);
    if last != Some(settings.batch_tokens) {
        if let Some(last) = last {
            let now = settings.batch_tokens;
            let why = format!(
                "{CHANGEABLE} is {now} from here on ({last} before): gradients are added in another order"
            );
            on_event(TrainEvent::Differs { why });
        }
        state.budgets.push((state.step, settings.batch_tokens));
    }
    if let Some(why) = vectors::other_level(&state.processor) {
        on_event(TrainEvent::Differs { why });
    }
    State { processor: vectors::processor(), settings: settings.identity.clone(), ..state }
}

/// An error if the optimizer or the settings of a checkpoint are not those of the run that is to go on from it.
pub(super) fn refuse_drift(old: Option<&State>, new: &TrainerSettings, out: &Path) -> Result<()> {
    let Some(old) = old else { return Ok(()) };
    let (before, now) = (old.optimizer.name(), new.optimizer.kind.name());
    ensure!(
        before == now,
        "{} holds a checkpoint of the optimizer {before}, whose state is of no use to {now}: use {before} again, or --restart to start over",
        out.display()
    );
    let (Some(a), Some(b)) = (old.settings.as_object(), new.identity.as_object()) else { return Ok(()) };
    let keys = b.keys().chain(a.keys().filter(|k| !b.contains_key(*k)));
    let of = |map: &Map<String, Value>, key: &str| map.get(key).cloned().unwrap_or(Value::Null);
    let changed: Vec<String> = keys
        .filter(|k| *k != CHANGEABLE && a.get(*k) != b.get(*k))
        .map(|k| format!("{k}: {} -> {}", of(a, k), of(b, k)))
        .collect();
    ensure!(
        changed.is_empty(),
        "{} holds a checkpoint of a run with other settings ({}): use those again, or --restart to start over",
        out.display(),
        changed.join("; ")
    );
    Ok(())
}
