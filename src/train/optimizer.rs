//! AdamW over the trained tensors, with a learning rate and decay by kind.
use anyhow::Result;

use crate::{
    device::Device,
    models::transformer::train_step::{Changes, Param, ParamKind},
    ops::{
        adamw::{AdamW, AdamWTable, Group},
        grad_norm::GradNorm,
    },
    tensor::{Arena, DType, Tensor},
};

/// What does not change from step to step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OptimizerSettings {
    /// AdamW's first decay.
    pub beta1: f64,
    /// AdamW's second decay.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled decay of matrices and adapters; norms, biases and magnitudes have none.
    pub weight_decay: f64,
    /// Gradients are scaled down to this global norm; 0 is off.
    pub clip: f64,
    /// LoRA+ (Hayou et al. 2024): B learns this many times faster; 1 is off.
    pub lora_plus_ratio: f64,
}

/// First and second moments.
pub struct Optimizer {
    settings: OptimizerSettings,
    /// In the order of the parameters.
    pub(crate) moments: Vec<(Tensor, Tensor)>,
    table: AdamWTable,
    norm: GradNorm,
    changes: Vec<Changes>,
}

impl Optimizer {
    /// Zero moments for `params`, on their device.
    pub fn new(params: &[Param], settings: OptimizerSettings) -> Result<Optimizer> {
        let device = params.first().map_or(Device::Cpu, |p| p.value().device());
        let (moments, _) = Arena::build("optimizer moments", &device, |a| {
            let mut like = |p: &Param, part: &str| {
                a.tensor(&format!("{}.{part}", p.name), DType::F32, p.value().shape())
            };
            params.iter().map(|p| (like(p, "m"), like(p, "v"))).collect::<Vec<_>>()
        })?;
        let group = |(p, (m, v)): (&Param, &(Tensor, Tensor))| Group {
            param: p.writable().0,
            m: m.alias(),
            v: v.alias(),
            grad: p.grad.alias(),
            lr_factor: if p.kind == ParamKind::LoraB { settings.lora_plus_ratio as f32 } else { 1.0 },
            weight_decay: match p.kind {
                ParamKind::Vector | ParamKind::DoraMagnitude => 0.0,
                _ => settings.weight_decay as f32,
            },
        };
        let table = AdamWTable::new(params.iter().zip(&moments).map(group).collect())?;
        let norm = GradNorm::new(params.iter().map(|p| p.grad.alias()).collect())?;
        let changes = params.iter().map(|p| p.writable().1).collect();
        Ok(Optimizer { settings, moments, table, norm, changes })
    }

    /// One step (counted from 1) at `lr` of the parameters given to [`Optimizer::new`]; returns the gradient's global norm before clipping.
    pub fn step(&mut self, step: u64, lr: f64) -> Result<f64> {
        let s = &self.settings;
        let norm = self.norm.norm()?;
        let clip = if s.clip > 0.0 { (s.clip / (norm + 1e-6)).min(1.0) } else { 1.0 };
        self.changes.iter().for_each(Changes::note);
        self.table.update(&AdamW {
            lr: lr as f32,
            beta1: s.beta1 as f32,
            beta2: s.beta2 as f32,
            eps: s.eps as f32,
            weight_decay: s.weight_decay as f32,
            step,
            grad_scale: clip as f32,
        })?;
        Ok(norm)
    }
}

/// The first parameter whose gradient is not finite.
pub(super) fn first_not_finite(params: &[Param]) -> Result<Option<String>> {
    for p in params {
        if !p.grad.to_f32_vec()?.iter().all(|x| x.is_finite()) {
            return Ok(Some(p.name.clone()));
        }
    }
    Ok(None)
}
