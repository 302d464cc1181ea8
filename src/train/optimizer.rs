//! AdamW over the trained tensors, with a learning rate and decay by kind.
use anyhow::Result;

use crate::{
    models::train_step::{Param, ParamKind},
    ops::{
        adamw::{AdamW, adamw_update},
        grad_norm::global_norm,
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
    pub moments: Vec<(Tensor, Tensor)>,
    /// Bytes of the moments.
    pub bytes: usize,
}

impl Optimizer {
    /// Zero moments for `params`.
    pub fn new(params: &[Param], settings: OptimizerSettings) -> Result<Optimizer> {
        let (moments, bytes) = Arena::build("optimizer moments", &Default::default(), |a| {
            let mut like =
                |p: &Param, part: &str| a.tensor(&format!("{}.{part}", p.name), DType::F32, p.value.shape());
            params.iter().map(|p| (like(p, "m"), like(p, "v"))).collect::<Vec<_>>()
        })?;
        Ok(Optimizer { settings, moments, bytes })
    }

    /// One step (counted from 1) at `lr`; returns the gradient's global norm before clipping.
    pub fn step(&mut self, params: &[Param], step: u64, lr: f64) -> Result<f64> {
        let s = &self.settings;
        let norm = global_norm(&params.iter().map(|p| &p.grad).collect::<Vec<_>>())?;
        let clip = if s.clip > 0.0 { (s.clip / (norm + 1e-6)).min(1.0) } else { 1.0 };
        for (p, (m, v)) in params.iter().zip(&mut self.moments) {
            let faster = if p.kind == ParamKind::LoraB { s.lora_plus_ratio } else { 1.0 };
            let decays = !matches!(p.kind, ParamKind::Vector | ParamKind::DoraMagnitude);
            let hyper = AdamW {
                lr: (lr * faster) as f32,
                beta1: s.beta1 as f32,
                beta2: s.beta2 as f32,
                eps: s.eps as f32,
                weight_decay: if decays { s.weight_decay as f32 } else { 0.0 },
                step,
                grad_scale: clip as f32,
            };
            adamw_update(&mut p.value.clone(), m, v, &p.grad, &hyper)?;
        }
        Ok(norm)
    }
}
