//! Adapters folded into the weights.
use anyhow::{Context, Result, ensure};

use super::{
    lora::{Adapter, Lora, Replaced},
    tree::Place,
    weight::Weight,
    weights::Transformer,
};
use crate::{
    ops::{parallel::map_chunks, rows::cast},
    report::out::note,
    tensor::{DType, Tensor},
};

/// Row o of W + scale B A.
fn merged_row(weight: &[f32], a: &[f32], b: &[f32], scale: f32, out: &mut [f32]) {
    out.copy_from_slice(weight);
    for (a, b) in a.chunks_exact(weight.len()).zip(b) {
        let factor = scale * b;
        out.iter_mut().zip(a).for_each(|(o, a)| *o += factor * a);
    }
}

impl Transformer {
    /// Merges an adapter into the weights: W + scale B A (DoRA: rows rescaled to the magnitude) in F32, cast once to W's type; a matrix in blocks becomes a
    /// tensor of the run's type, since blocks could not hold the sum.
    pub fn apply_adapter(&mut self, lora: &Lora) -> Result<()> {
        let in_integers = self.in_integers();
        self.replace(lora)?;
        ensure!(
            lora.layers.len() == self.spec.units(),
            "the adapter is of {} layers and experts, the model has {}",
            lora.layers.len(),
            self.spec.units()
        );
        for (unit, id, adapter) in lora.part_adapters() {
            let linear = self.weights.unit_mut(unit).and_then(|unit| unit[id].as_mut());
            let linear =
                linear.with_context(|| format!("the model has no {}", self.spec.module_path(unit, id)))?;
            let merged =
                merge(&linear.weight, adapter).with_context(|| format!("merge {}", linear.weight.name()))?;
            linear.weight = merged.into();
        }
        let merged = in_integers - self.in_integers();
        if merged > 0 {
            note!(
                "warning: {merged} of {in_integers} matrices have the adapter in them and are no blocks any more: their products read f32, not int8"
            );
        }
        Ok(())
    }

    /// Puts the tensors that an adapter replaces in their places, rounded once to the run's type; its low-rank updates are left alone. A head that was the
    /// embedding and is so no longer becomes one of its own.
    pub fn replace(&mut self, lora: &Lora) -> Result<()> {
        for Replaced { place, values } in &lora.replaced {
            let matrix = || -> Result<Weight> {
                let mut out = Tensor::zeros(values.name(), self.compute.dtype(), values.shape())?;
                cast(&mut out, values, 1.0)?;
                Ok(out.into())
            };
            let weights = &mut self.weights;
            match *place {
                Place::Embedding => weights.embed_tokens = matrix()?,
                Place::Head => {
                    weights.lm_head = Some(matrix()?);
                    self.spec.tied_head = false;
                    self.config.tie_word_embeddings = false;
                }
                Place::FinalNorm => weights.norm = values.alias(),
                Place::Weight(unit, id) | Place::Bias(unit, id) => {
                    let linear = weights.unit_mut(unit).and_then(|unit| unit[id].as_mut());
                    let linear = linear.with_context(|| format!("the model has no {}", values.name()))?;
                    match *place {
                        Place::Bias(..) => linear.bias = Some(values.alias()),
                        _ => linear.weight = matrix()?,
                    }
                }
                Place::Norm(l, id) => weights.layers[l].norms[id] = Some(values.alias()),
            }
        }
        Ok(())
    }
}

/// weight + scale B A, DoRA's rows rescaled, in the weight's type.
pub(crate) fn merge(base: &Weight, adapter: &Adapter) -> Result<Tensor> {
    let (out, inp) = base.rows_cols();
    let r = adapter.a.shape()[0];
    ensure!(
        adapter.a.shape() == [r, inp] && adapter.b.shape() == [out, r],
        "adapter {:?} {:?} does not fit {:?}",
        adapter.a,
        adapter.b,
        base
    );
    let (a, b) = (adapter.a.f32()?, adapter.b.f32()?);
    let magnitude = adapter.magnitude.as_ref().map(|m| m.f32()).transpose()?;
    let scale = adapter.scale;
    let source = base.to_f32_vec()?;
    let mut merged = vec![0.0; out * inp];
    map_chunks(&mut merged, inp, out * inp * (r + 2), |o, row| {
        merged_row(&source[o * inp..][..inp], a, &b[o * r..][..r], scale, row);
        if let Some(m) = magnitude {
            let norm = row.iter().map(|&x| x as f64 * x as f64).sum::<f64>().sqrt() as f32;
            row.iter_mut().for_each(|x| *x *= m[o] / norm);
        }
    });
    ensure!(
        merged.iter().all(|x| x.is_finite()),
        "the sum has NaN or infinity: the base, the adapter or their sum is broken"
    );
    let mut weight = Tensor::zeros(base.name(), base.dtype(), &[out, inp])?;
    match weight.dtype() {
        DType::F32 => weight.f32_mut()?.copy_from_slice(&merged),
        _ => weight.bf16_mut()?.iter_mut().zip(&merged).for_each(|(o, x)| *o = half::bf16::from_f32(*x)),
    }
    Ok(weight)
}
