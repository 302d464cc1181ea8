//! What a step exchanges with other ranks while it computes.
use std::rc::Rc;

use anyhow::Result;

use super::TrainStep;
use crate::{
    distributed::{
        beside::{Part, Piece, Sums},
        team::Team,
    },
    models::transformer::{grads::Param, weights::Transformer},
    tensor::Tensor,
};

impl TrainStep {
    /// From here on gradients are summed over the ranks of `team`, in bf16 if `narrow`, each part beside the rest of the backward pass. `pieces` cuts a trained tensor's gradient, by its number
    /// among [`TrainStep::params`], into those that one rank needs.
    ///
    /// # Errors
    /// Too little memory.
    pub fn sum_over(
        &mut self,
        model: &Transformer,
        team: &Rc<Team>,
        narrow: bool,
        pieces: &dyn Fn(usize, &Tensor) -> Result<Vec<Piece>>,
    ) -> Result<()> {
        let params = self.params(model);
        let layers = (0..model.spec.layers.len()).rev().map(Part::Layer);
        let mut parts = vec![];
        for part in [Part::Head].into_iter().chain(layers).chain([Part::Embedding]) {
            let of_part = |(i, p): (usize, &Param)| (p.part == part).then(|| pieces(i, &p.grad.flat()));
            let all = params.iter().enumerate().filter_map(of_part).collect::<Result<Vec<_>>>()?;
            if !all.is_empty() {
                parts.push((part, all.into_iter().flatten().collect()));
            }
        }
        let sums = Sums::new(team.clone(), parts, narrow)?;
        if narrow {
            self.memory.push(("gradients in bf16".into(), sums.bytes()));
        }
        self.sums = Some(sums);
        Ok(())
    }

    /// The next backward pass is the last of an optimizer step: gradients are summed over the ranks from the moment when they are final on.
    pub fn last_pass(&self) {
        self.sums.iter().for_each(Sums::last_pass);
    }

    /// Waits for the sums over the ranks; what has not begun begins now.
    pub fn finish_sums(&self) -> Result<()> {
        self.sums.as_ref().map_or(Ok(()), Sums::finish)
    }

    /// Takes part in what the other ranks exchange in a pass forward and, if `back`, in one backward, with nothing to compute.
    ///
    /// # Errors
    /// Of the exchange.
    pub fn idle(&self, model: &Transformer, back: bool) -> Result<()> {
        let n = model.spec.layers.len();
        (0..n).try_for_each(|l| model.need(l, (l + 1 < n).then_some(l + 1)))?;
        if back {
            self.is_final(Part::Head)?;
            for l in (self.lowest..n).rev() {
                model.need(l, (l > self.lowest).then(|| l - 1))?;
                self.is_final(Part::Layer(l))?;
            }
            self.is_final(Part::Embedding)?;
        }
        model.end_of_pass()
    }

    pub(super) fn is_final(&self, part: Part) -> Result<()> {
        self.sums.as_ref().map_or(Ok(()), |sums| sums.is_final(part))
    }
}
