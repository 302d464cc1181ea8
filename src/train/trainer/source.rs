//! Is the source language kept? Held-out rows and plain text, and what the guard makes of them.
use anyhow::Result;

use super::{Run, validation_loss};
use crate::{
    models::transformer::{train_step::TrainStep, weights::Transformer},
    train::{guard::GuardState, run_types::TrainEvent},
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
        let loss =
            self.checks.source.map(|rows| validation_loss(model, step, rows, self.settings)).transpose()?;
        let budget = self.settings.batch_tokens;
        let bits = self.checks.text.map(|text| text.bits_per_byte(model, step, budget)).transpose()?;
        for (what, value) in [("source-language loss", loss), ("bits per byte of the guard's text", bits)] {
            value.map_or(Ok(()), |value| self.check_finite(what, value, number))?;
        }
        let stop = self.state.guard.observe(loss, bits, &self.settings.guard);
        let GuardState { before, bits_before, weight } = self.state.guard;
        if let Some(loss) = loss {
            self.log.write(number, &[("eval/source_loss", loss)])?;
            on_event(TrainEvent::Guard { step: number, loss, before: before.unwrap_or(loss), weight });
        }
        if let Some(bits) = bits {
            self.log.write(number, &[("eval/source_bits_per_byte", bits)])?;
            let before = bits_before.unwrap_or(bits);
            on_event(TrainEvent::GuardText { step: number, bits, before, weight });
        }
        Ok(stop)
    }
}
