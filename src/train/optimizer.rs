//! Optimizers over the trained tensors, with a learning rate and decay by kind.
use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::{
    device::Device,
    models::transformer::train_step::{Changes, Param, ParamKind},
    ops::{
        adafactor::{Adafactor, AdafactorTable, Member, Squares},
        adamw::{AdamW, AdamWTable, Group},
        adamw8::{AdamW8Table, Codes, Group8},
        grad_norm::GradNorm,
        muon::{Matrix, Muon, MuonTable, Scratch},
    },
    tensor::{Arena, DType, Tensor},
};

/// How parameters follow their gradients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum OptimizerKind {
    /// AdamW: 8 bytes of state a parameter
    #[default]
    #[serde(alias = "adamw_torch")]
    #[value(alias = "adamw_torch")]
    Adamw,
    /// AdamW with moments of 8 bits, as bitsandbytes' AdamW8bit: 2 bytes a parameter, in tensors of at least 4096 elements; the others keep AdamW's state.
    /// `lr` means what it means for adamw
    #[serde(rename = "adamw-8bit", alias = "adamw_8bit", alias = "adamw_bnb_8bit")]
    #[value(name = "adamw-8bit", alias = "adamw_8bit", alias = "adamw_bnb_8bit")]
    Adamw8bit,
    /// Adafactor as transformers' Trainer uses it (no relative steps, no first moment): for a matrix a number a row and a column. `lr` times a step whose root
    /// mean square is 1 at most: begin with adamw's
    Adafactor,
    /// Muon as torch.optim.Muon with match_rms_adamw (momentum 0.95) for the matrices of layers and adapters: 4 bytes a parameter; embedding, head, norms, biases
    /// and magnitudes by adamw. A step's root mean square is about 0.2 times `lr`, as AdamW's: begin with adamw's
    Muon,
}

/// Smaller tensors keep moments of 32 bits, as in bitsandbytes.
const LEAST_8BIT: usize = 4096;

impl OptimizerKind {
    /// The name that settings have for it.
    pub fn name(self) -> &'static str {
        match self {
            OptimizerKind::Adamw => "adamw",
            OptimizerKind::Adamw8bit => "adamw-8bit",
            OptimizerKind::Adafactor => "adafactor",
            OptimizerKind::Muon => "muon",
        }
    }

    /// Bytes of state that a large matrix takes for each of its elements, at the least.
    pub fn bytes_of_element(self) -> usize {
        match self {
            OptimizerKind::Adamw => 8,
            OptimizerKind::Adamw8bit => 2,
            OptimizerKind::Adafactor => 0,
            OptimizerKind::Muon => 4,
        }
    }

    /// Whether it is what settings that do not name one mean.
    pub fn is_usual(&self) -> bool {
        *self == OptimizerKind::Adamw
    }
}

/// What does not change from step to step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OptimizerSettings {
    /// Which.
    pub kind: OptimizerKind,
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

/// What is kept of one parameter from step to step.
enum Own {
    /// First and second moment.
    Adamw([Tensor; 2]),
    /// The same, coded.
    Adamw8bit([Codes; 2]),
    /// The second moment.
    Adafactor(Squares),
    /// Momentum.
    Muon(Tensor),
}

impl Own {
    fn lay_out(p: &Param, kind: OptimizerKind, a: &mut Arena) -> Own {
        let n = p.value().len();
        let mut tensor =
            |part: &str, dtype: DType, dims: &[usize]| a.tensor(&format!("{}.{part}", p.name), dtype, dims);
        if kind == OptimizerKind::Adamw8bit && n >= LEAST_8BIT {
            let (words, tops) = Codes::sizes(n);
            return Own::Adamw8bit(["m", "v"].map(|m| Codes {
                codes: tensor(&format!("{m}_codes"), DType::U32, &[words]),
                tops: tensor(&format!("{m}_tops"), DType::F32, &[tops]),
            }));
        }
        if let (OptimizerKind::Adafactor, shape) = (kind, p.value().shape()) {
            let [rows, cols] = *shape else {
                return Own::Adafactor(Squares::Whole(tensor("square", DType::F32, shape)));
            };
            let (row, col) = (tensor("row", DType::F32, &[rows]), tensor("col", DType::F32, &[cols]));
            return Own::Adafactor(Squares::Factored { row, col });
        }
        let matrix = matches!(p.kind, ParamKind::LoraA | ParamKind::LoraB | ParamKind::Matrix);
        if kind == OptimizerKind::Muon && matrix {
            return Own::Muon(tensor("momentum", DType::F32, p.value().shape()));
        }
        Own::Adamw(["m", "v"].map(|m| tensor(m, DType::F32, p.value().shape())))
    }

    fn tensors(&self) -> Vec<Tensor> {
        match self {
            Own::Muon(moment) => vec![moment.alias()],
            Own::Adafactor(squares) => squares.tensors().map(Tensor::alias).collect(),
            Own::Adamw(moments) => moments.iter().map(Tensor::alias).collect(),
            Own::Adamw8bit(moments) => {
                moments.iter().flat_map(|m| [m.codes.alias(), m.tops.alias()]).collect()
            }
        }
    }
}

/// The state of these parameters, and what Muon computes in.
fn lay_out(params: &[Param], kind: OptimizerKind, a: &mut Arena) -> (Vec<Own>, Option<Scratch>) {
    let own: Vec<Own> = params.iter().map(|p| Own::lay_out(p, kind, a)).collect();
    let shape = |own: &Own| if let Own::Muon(t) = own { Some(t.rows_cols().into()) } else { None };
    let shapes: Vec<[usize; 2]> = own.iter().filter_map(shape).collect();
    let scratch = (!shapes.is_empty()).then(|| Scratch::lay_out(&shapes, a));
    (own, scratch)
}

/// Bytes of an optimizer's state for these parameters, and of what it computes in.
pub fn state_bytes(params: &[Param], kind: OptimizerKind) -> usize {
    Arena::measure(|a| drop(lay_out(params, kind, a)))
}

/// The state, and what is done with it.
pub struct Optimizer {
    settings: OptimizerSettings,
    /// In the order of the parameters.
    own: Vec<Own>,
    adamw: AdamWTable,
    adamw8: AdamW8Table,
    adafactor: AdafactorTable,
    muon: Option<MuonTable>,
    norm: GradNorm,
    changes: Vec<Changes>,
}

impl Optimizer {
    /// Zero state for `params`, on their device.
    pub fn new(params: &[Param], settings: OptimizerSettings) -> Result<Optimizer> {
        let device = params.first().map_or(Device::Cpu, |p| p.value().device());
        let ((own, scratch), _) =
            Arena::build("optimizer state", &device, |a| lay_out(params, settings.kind, a))?;
        let (mut adamw, mut adamw8, mut adafactor, mut muon) = (vec![], vec![], vec![], vec![]);
        for (p, own) in params.iter().zip(&own) {
            let (param, grad) = (p.writable().0, p.grad.alias());
            let lr_factor = if p.kind == ParamKind::LoraB { settings.lora_plus_ratio as f32 } else { 1.0 };
            let weight_decay = match p.kind {
                ParamKind::Vector | ParamKind::DoraMagnitude => 0.0,
                _ => settings.weight_decay as f32,
            };
            match own {
                Own::Adamw([m, v]) => {
                    let (m, v) = (m.alias(), v.alias());
                    adamw.push(Group { param, m, v, grad, lr_factor, weight_decay });
                }
                Own::Adamw8bit([m, v]) => {
                    let (m, v) = (m.alias(), v.alias());
                    adamw8.push(Group8 { param, m, v, grad, lr_factor, weight_decay });
                }
                Own::Adafactor(squares) => {
                    let squares = squares.alias();
                    adafactor.push(Member { param, grad, squares, lr_factor, weight_decay });
                }
                Own::Muon(moment) => {
                    let moment = moment.alias();
                    muon.push(Matrix { param, grad, moment, lr_factor, weight_decay });
                }
            }
        }
        let (adamw, adamw8) = (AdamWTable::new(adamw)?, AdamW8Table::new(adamw8)?);
        let adafactor = AdafactorTable::new(adafactor)?;
        let muon = scratch.map(|scratch| MuonTable::new(muon, scratch)).transpose()?;
        let norm = GradNorm::new(params.iter().map(|p| p.grad.alias()).collect())?;
        let changes = params.iter().map(|p| p.writable().1).collect();
        Ok(Optimizer { settings, own, adamw, adamw8, adafactor, muon, norm, changes })
    }

    /// Handles on the whole state, each tensor with a name of its own: what a checkpoint holds.
    pub fn state(&self) -> Vec<Tensor> {
        self.own.iter().flat_map(Own::tensors).collect()
    }

    /// One step (counted from 1) at `lr` of the parameters given to [`Optimizer::new`]; returns the gradient's global norm before clipping.
    pub fn step(&mut self, step: u64, lr: f64) -> Result<f64> {
        let s = &self.settings;
        let norm = self.norm.norm()?;
        let clip = if s.clip > 0.0 { (s.clip / (norm + 1e-6)).min(1.0) } else { 1.0 };
        self.changes.iter().for_each(Changes::note);
        let h = AdamW {
            lr: lr as f32,
            beta1: s.beta1 as f32,
            beta2: s.beta2 as f32,
            eps: s.eps as f32,
            weight_decay: s.weight_decay as f32,
            step,
            grad_scale: clip as f32,
        };
        self.adamw.update(&h)?;
        self.adamw8.update(&h)?;
        self.adafactor.update(&Adafactor { lr: h.lr, step, grad_scale: h.grad_scale })?;
        if let Some(muon) = &mut self.muon {
            muon.update(&Muon { lr: h.lr, grad_scale: h.grad_scale })?;
        }
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
