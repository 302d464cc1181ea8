//! Going on from a checkpoint: what must be equal, and what may differ and is told.
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value};

use super::{
    checkpoint::{self, State},
    optimizer::Optimizer,
    run_types::{CHANGEABLE, RANKS, TrainEvent, TrainerSettings},
};
use crate::{device::vectors, distributed::team::Team, models::transformer::train_step::Param};

/// Ranks that decide the last bits: one where sums have a fixed order.
fn ranks_of(settings: &TrainerSettings, team: &Team) -> usize {
    if settings.fixed_order { 1 } else { team.world().size() }
}

/// Rank 0's: the newest checkpoint, loaded, or the beginning.
pub(super) fn state(
    params: &[Param],
    optimizer: &Optimizer,
    settings: &TrainerSettings,
    (out, team): (&Path, &Team),
    on_event: &mut dyn FnMut(TrainEvent),
) -> Result<State> {
    std::fs::create_dir_all(out).with_context(|| format!("create {}", out.display()))?;
    refuse_drift(checkpoint::latest_state(out).as_ref(), settings, out)?;
    let ranks = ranks_of(settings, team);
    Ok(match checkpoint::load_latest(out, params, &mut optimizer.state())? {
        Some(state) => {
            on_event(TrainEvent::Resumed { step: state.step });
            goes_on(state, settings, ranks, on_event)
        }
        None => begins(settings, ranks),
    })
}

/// Rank 0's state and parameters on every rank, and its moments, unless each has a part of them: of a checkpoint the others read that part alone.
pub(super) fn shared(
    first: Option<State>,
    params: &[Param],
    optimizer: &Optimizer,
    (out, team): (&Path, &Team),
) -> Result<State> {
    let text = first.map(|state| serde_json::to_string(&state)).transpose()?;
    let state: State =
        serde_json::from_str(&team.text_of_first(text.unwrap_or_default())?).context("rank 0's state")?;
    for p in params {
        let (mut value, changes) = p.writable();
        changes.note();
        team.broadcast(&mut value)?;
    }
    if !optimizer.is_shared() {
        optimizer.state().iter_mut().try_for_each(|t| team.broadcast(t))?;
    } else if !team.is_first() && state.step > 0 {
        team.alone(|| checkpoint::load_part(out, state.step, &mut optimizer.state()))?;
    }
    Ok(state)
}

/// The state before the first step.
fn begins(settings: &TrainerSettings, ranks: usize) -> State {
    let (budgets, optimizer) = (vec![(0, settings.batch_tokens)], settings.optimizer.kind);
    let ranks = if ranks > 1 { vec![(0, ranks)] } else { vec![] };
    State { budgets, ranks, optimizer, ..State::fresh(settings.identity.clone()) }
}

/// A checkpoint's state under what may differ from the run that wrote it; the difference is told and remembered.
fn goes_on(
    mut state: State,
    settings: &TrainerSettings,
    ranks: usize,
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
    let last = state.ranks.last().map_or(1, |(_, ranks)| *ranks);
    if last != ranks {
        let why =
            format!("{ranks} ranks train from here on ({last} before): gradients are added in another order");
        on_event(TrainEvent::Differs { why });
        state.ranks.push((state.step, ranks));
    }
    if let Some(why) = vectors::other_level(&state.processor) {
        on_event(TrainEvent::Differs { why });
    }
    State { processor: vectors::processor(), settings: settings.identity.clone(), ..state }
}

/// An error if the optimizer or the settings of a checkpoint are not those of the run that is to go on from it.
fn refuse_drift(old: Option<&State>, new: &TrainerSettings, out: &Path) -> Result<()> {
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
        .filter(|k| ![CHANGEABLE, RANKS].contains(&k.as_str()) && a.get(*k) != b.get(*k))
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
