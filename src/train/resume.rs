//! Going on from a checkpoint: what must be equal, and what may differ and is told.
use std::path::Path;

use anyhow::{Result, ensure};
use serde_json::Value;

use super::{
    checkpoint::State,
    run_types::{CHANGEABLE, TrainEvent, TrainerSettings},
};
use crate::device::vectors;

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

/// An error if the settings of a checkpoint are not those of the run that is to go on from it.
pub(super) fn refuse_drift(old: &Value, new: &Value, out: &Path) -> Result<()> {
    let (Some(a), Some(b)) = (old.as_object(), new.as_object()) else { return Ok(()) };
    let changed: Vec<String> = b
        .iter()
        .filter(|(k, v)| *k != CHANGEABLE && a.get(*k) != Some(v))
        .map(|(k, v)| format!("{k}: {} -> {v}", a.get(k).unwrap_or(&Value::Null)))
        .collect();
    ensure!(
        changed.is_empty(),
        "{} holds a checkpoint of a run with other settings ({}): use those again, or --restart to start over",
        out.display(),
        changed.join("; ")
    );
    Ok(())
}
