//! Is the source language kept? Held-out rows and plain text, and what the guard makes of them.
use anyhow::Result;

use super::{super::validation::loss_over_ranks, Run};
use crate::{
    models::transformer::{train_step::TrainStep, weights::Transformer},
    train::{guard::GuardState, held_out_text::HeldOutText, run_types::TrainEvent},
};

impl Run<'_> {
    /// The loss of held-out source rows and the bits per byte of held-out text, as far as there are any; true if training is to end.
    pub(super) fn source_loss(
        &mut self,
        model: &Transformer,
        step: &mut TrainStep,
        on_event: &mut dyn FnMut(TrainEvent),
    ) -> Result<bool> {
        let number = self.state.step;
        let loss = self
            .checks
            .source
            .map(|rows| loss_over_ranks(model, step, rows, (self.settings, &self.team)))
            .transpose()?;
        let budget = self.settings.batch_tokens;
        let team = self.team.clone();
        let bits = |text: &HeldOutText| match model.is_in_parts() {
            // Every layer takes all ranks.
            true => text.bits_per_byte(model, step, budget),
            false => team.from_first(|| text.bits_per_byte(model, step, budget)),
        };
        let bits = self.checks.text.map(bits).transpose()?;
        for (what, value) in [("source-language loss", loss), ("bits per byte of the guard's text", bits)] {
            value.map_or(Ok(()), |value| self.check_finite(what, value, number))?;
        }
        let stop = self.state.guard.observe(loss, bits, &self.settings.guard);
        let GuardState { before, bits_before, weight } = self.state.guard;
        if let Some(loss) = loss {
            self.write(number, &[("eval/source_loss", loss)])?;
            on_event(TrainEvent::Guard { step: number, loss, before: before.unwrap_or(loss), weight });
        }
        if let Some(bits) = bits {
            self.write(number, &[("eval/source_bits_per_byte", bits)])?;
            let before = bits_before.unwrap_or(bits);
            on_event(TrainEvent::GuardText { step: number, bits, before, weight });
        }
        Ok(stop)
    }
}
