//! Modules, which adapters belong to: a linear, or several that a checkpoint keeps as one matrix.
use std::ops::Range;

use super::{
    ids::{FUSED, Fused, LinearId},
    spec::Spec,
};

impl Spec {
    /// The matrix that linear `id` is rows of, where that is not one of its own.
    pub(super) fn fused(&self, id: LinearId) -> Option<&'static Fused> {
        FUSED.iter().find(|fused| self.fused && fused.parts.contains(&id))
    }

    /// The linears of the module that `id` belongs to: itself alone, or those that are kept as one matrix.
    pub fn module_parts(&self, id: LinearId) -> &'static [LinearId] {
        let alone = LinearId::ALL.iter().position(|&other| other == id).unwrap_or(0);
        self.fused(id).map_or(&LinearId::ALL[alone..=alone], |fused| fused.parts)
    }

    /// True for the linear that stands for its module.
    pub fn is_first(&self, id: LinearId) -> bool {
        self.module_parts(id).first() == Some(&id)
    }

    /// The path of the module that `id` belongs to: `model.layers.0.self_attn.qkv_proj` or, where it is one of its own, that of the linear.
    pub fn module_path(&self, unit: usize, id: LinearId) -> String {
        match self.fused(id) {
            Some(fused) => format!("model.layers.{unit}.{}", fused.path),
            None => self.linear_path(unit, id),
        }
    }

    /// (out, in) of that module.
    pub fn module_dims(&self, unit: usize, id: LinearId) -> (usize, usize) {
        let out = self.module_parts(id).iter().map(|&part| self.linear_dims(unit, part).0).sum();
        (out, self.linear_dims(unit, id).1)
    }

    /// The names of the modules that adapters are for unless others are given: the last parts of their paths. Where there are experts, those of attention and of
    /// MLPs without them: adapters on every expert are many, and most of their tokens few, so that they are for who names them.
    pub fn module_names(&self) -> Vec<String> {
        let name = |id: LinearId| -> Option<String> {
            let of_mlp = matches!(id, LinearId::Gate | LinearId::Up | LinearId::Down);
            match self.experts.is_some() && of_mlp {
                true => self.layers.iter().any(|layer| !layer.sparse).then(|| id.path().to_string()),
                false => Some(self.fused(id).map_or(id.module(), Fused::module).to_string()),
            }
        };
        LinearId::ADAPTABLE.iter().filter(|&&id| self.is_first(id)).filter_map(|&id| name(id)).collect()
    }

    /// The rows of that module that are `id`'s.
    pub fn module_rows(&self, unit: usize, id: LinearId) -> Range<usize> {
        let before = self.module_parts(id).iter().take_while(|&&part| part != id);
        let first = before.map(|&part| self.linear_dims(unit, part).0).sum::<usize>();
        first..first + self.linear_dims(unit, id).0
    }
}
