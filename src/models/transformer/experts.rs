//! Mixtures of experts: what they are, and units, by which linears, adapters and gradients are counted.
//!
//! A unit is a layer's own linears (units 0 to L), or those of one of its experts (from L on, layer by layer, expert by expert). The router belongs to the layer.
use std::ops::Range;

use anyhow::{Result, ensure};

use super::{ids::LinearId, spec::Spec, weights::Transformer};
use crate::{error::Error, report::out::note};

/// The MLP of sparse layers: a token's output is the sum over K of E experts, gated MLPs of their own, each times its share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertSpec {
    /// E.
    pub count: usize,
    /// K: of a token.
    pub chosen: usize,
    /// F of each.
    pub width: usize,
    /// The shares are the softmax over the K chosen logits; else their part of the softmax over all E.
    pub normalised: bool,
    /// Checkpoints call them `block_sparse_moe.experts.0.w1` (gate), `w3` (up) and `w2` (down), as Mixtral's do.
    pub numbered: bool,
}

impl Spec {
    /// Units of all layers.
    pub fn units(&self) -> usize {
        self.layers.len() + self.sparse_layers(self.layers.len()) * self.expert_count()
    }

    /// E, or 0.
    fn expert_count(&self) -> usize {
        self.experts.map_or(0, |experts| experts.count)
    }

    /// Sparse layers below `l`.
    fn sparse_layers(&self, l: usize) -> usize {
        self.layers[..l].iter().filter(|layer| layer.sparse).count()
    }

    /// The units of the experts of layer `l`.
    pub fn expert_units(&self, l: usize) -> Range<usize> {
        let count = if self.layers[l].sparse { self.expert_count() } else { 0 };
        let first = self.layers.len() + self.sparse_layers(l) * self.expert_count();
        first..first + count
    }

    /// A unit's layer, and which of its experts it is, if it is one.
    pub fn owner(&self, unit: usize) -> (usize, Option<usize>) {
        let Some(expert) = unit.checked_sub(self.layers.len()) else { return (unit, None) };
        let count = self.expert_count().max(1);
        let mut sparse = (0..self.layers.len()).filter(|&l| self.layers[l].sparse);
        (sparse.clone().nth(expert / count).or(sparse.next_back()).unwrap_or(0), Some(expert % count))
    }

    /// True for units of experts.
    pub fn is_expert(&self, unit: usize) -> bool {
        unit >= self.layers.len()
    }

    /// True if the unit has this linear.
    pub fn has_linear(&self, unit: usize, id: LinearId) -> bool {
        let of_mlp = matches!(id, LinearId::Gate | LinearId::Up | LinearId::Down);
        match self.is_expert(unit) {
            true => of_mlp,
            false if self.layers[unit].sparse => !of_mlp,
            false => id != LinearId::Router,
        }
    }

    /// The path of a linear: `model.layers.0.self_attn.q_proj`.
    pub fn linear_path(&self, unit: usize, id: LinearId) -> String {
        let (l, expert) = self.owner(unit);
        let numbered = self.experts.is_some_and(|experts| experts.numbered);
        match (expert, numbered) {
            (Some(e), true) => format!("model.layers.{l}.block_sparse_moe.experts.{e}.{}", numbered_name(id)),
            (Some(e), false) => format!("model.layers.{l}.mlp.experts.{e}.{}", id.module()),
            (None, true) if id == LinearId::Router => format!("model.layers.{l}.block_sparse_moe.gate"),
            (None, _) => format!("model.layers.{l}.{}", id.path()),
        }
    }

    /// Rows of a token in the MLP of layer `l`, and their width: (1, F), or (K, an expert's F).
    pub fn mlp_rows(&self, l: usize) -> (usize, usize) {
        match self.experts.filter(|_| self.layers[l].sparse) {
            Some(experts) => (experts.chosen, experts.width),
            None => (1, self.intermediate_size),
        }
    }

    /// Numbers of a token between the halves of the widest MLP.
    pub fn mlp_width(&self) -> usize {
        (0..self.layers.len()).map(|l| self.mlp_rows(l)).map(|(k, f)| k * f).max().unwrap_or(0)
    }

    /// F of the widest MLP, an expert's or a layer's own.
    pub fn widest_mlp(&self) -> usize {
        (0..self.layers.len()).map(|l| self.mlp_rows(l).1).max().unwrap_or(0)
    }

    /// Rows that experts have of a token: K, or 0 without them.
    pub fn expert_rows(&self) -> usize {
        self.experts.map_or(0, |experts| experts.chosen)
    }

    /// The part of the tokens that pass a unit: 1, or of experts K / E on average.
    pub fn passed(&self, unit: usize) -> f64 {
        let experts = self.experts.filter(|_| self.is_expert(unit));
        experts.map_or(1.0, |experts| experts.chosen as f64 / experts.count as f64)
    }

    /// Parameters of the experts that a token does not pass.
    pub fn idle_parameters(&self) -> usize {
        let of_layer = self.experts.map_or(0, |e| (e.count - e.chosen) * 3 * self.hidden_size * e.width);
        self.sparse_layers(self.layers.len()) * of_layer
    }

    /// Refuses experts where FLOP, bytes and times are reckoned: a token passes few of them, and which ones is not known before.
    pub fn check_reckoned(&self) -> Result<()> {
        ensure!(
            self.experts.is_none(),
            Error::unsupported(
                "a mixture of experts",
                "the FLOP, bytes and times of a mixture of experts are not reckoned: its work depends on which experts its tokens choose"
            )
        );
        Ok(())
    }

    /// Refuses mixtures that cannot be, and those whose layers have what they are not computed with.
    pub(super) fn check_experts(&self) -> Result<()> {
        let any = self.layers.iter().any(|layer| layer.sparse);
        let Some(ExpertSpec { count, chosen, width, .. }) = self.experts else {
            ensure!(!any, "layers are mixtures of experts, but there are no experts");
            return Ok(());
        };
        ensure!(
            (1..=count).contains(&chosen),
            "num_experts_per_tok is {chosen} of {count} experts: from 1 to all of them can be chosen"
        );
        let sane = (1..1 << 12).contains(&count)
            && (1..1 << 20).contains(&width)
            && count * width < 1 << 23
            && self.layers.len() * count < 1 << 17;
        ensure!(sane, "{count} experts of {width} are absurd");
        let plain = !self.post_norms && self.pre_norms && self.residual_scale == 1.0 && !self.fused;
        let biased = [LinearId::Gate, LinearId::Up, LinearId::Down, LinearId::Router];
        ensure!(
            plain && biased.iter().all(|&id| !self.biases[id]),
            "experts beside norms behind the MLP, factors, biases or fused matrices are not supported"
        );
        Ok(())
    }
}

/// Says that training adds no loss that balances experts, where the model's configuration asks transformers for one. Beside adapters routers are frozen, and such a loss would act
/// only through what the adapters feed them.
pub(super) fn say_unbalanced(model: &Transformer) -> Result<()> {
    if model.spec.experts.is_some() && model.config.flag("output_router_logits")? {
        note!(
            "config.json has output_router_logits, with which transformers adds a loss that balances the experts (router_aux_loss_coef): it is not added here"
        );
    }
    Ok(())
}

/// What `numbered_name` can say.
pub const NUMBERED: [&str; 3] = ["w1", "w2", "w3"];

/// Mixtral's names.
fn numbered_name(id: LinearId) -> &'static str {
    match id {
        LinearId::Gate => "w1",
        LinearId::Down => "w2",
        LinearId::Up => "w3",
        other => other.module(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::transformer::config::Config;

    /// Units are counted layer by layer, and a unit's owner is who has it.
    #[test]
    fn units_and_owners_agree() {
        let config = serde_json::json!({"model_type": "qwen3_moe", "hidden_size": 8, "intermediate_size": 12, "moe_intermediate_size": 4,
            "num_hidden_layers": 5, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 10, "num_experts": 3,
            "num_experts_per_tok": 2, "decoder_sparse_step": 2, "mlp_only_layers": [1]});
        let spec = Config::from_value(config).unwrap().spec().unwrap();
        // Every second layer, but not the one that is listed.
        assert_eq!(
            spec.layers.iter().map(|l| l.sparse).collect::<Vec<_>>(),
            [false, false, false, true, false]
        );
        assert_eq!((spec.units(), spec.expert_units(3), spec.expert_units(1)), (8, 5..8, 5..5));
        for l in 0..5 {
            assert_eq!(spec.owner(l), (l, None));
            for (e, unit) in spec.expert_units(l).enumerate() {
                assert_eq!(spec.owner(unit), (l, Some(e)));
            }
        }
        assert_eq!(spec.linear_path(6, LinearId::Up), "model.layers.3.mlp.experts.1.up_proj");
        assert!(spec.has_linear(3, LinearId::Router) && !spec.has_linear(3, LinearId::Gate));
        assert!(spec.has_linear(6, LinearId::Gate) && !spec.has_linear(6, LinearId::Q));
        // Of three experts a token passes two.
        assert_eq!((spec.idle_parameters(), spec.passed(3)), (3 * 8 * 4, 1.0));
        assert!((spec.passed(6) - 2.0 / 3.0).abs() < 1e-12);
        assert_eq!((spec.mlp_rows(3), spec.mlp_rows(0), spec.mlp_width()), ((2, 4), (1, 12), 12));
        let leaves = spec.leaves();
        let names: std::collections::HashSet<&str> = leaves.iter().map(|leaf| leaf.name.as_str()).collect();
        assert_eq!(names.len(), leaves.len());
        assert!(
            names.contains("model.layers.3.mlp.gate.weight")
                && !names.contains("model.layers.1.mlp.gate.weight")
        );
    }
}
