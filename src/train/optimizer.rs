//! Optimizers over the trained tensors, with a learning rate and decay by kind.
use std::{ops::Range, rc::Rc};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::shares::Shares;
use crate::{
    device::Device,
    distributed::team::Team,
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

    /// Whether each element of `p` goes its way by itself (with AdamW's 8 bits each block of 256): then ranks may share a tensor.
    pub(super) fn by_element(self, p: &Param) -> bool {
        match self {
            OptimizerKind::Adamw | OptimizerKind::Adamw8bit => true,
            OptimizerKind::Adafactor => false,
            OptimizerKind::Muon => !is_matrix(p),
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

/// What Muon takes for a matrix.
fn is_matrix(p: &Param) -> bool {
    matches!(p.kind, ParamKind::LoraA | ParamKind::LoraB | ParamKind::Matrix)
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
    /// Of the elements `range` of `p`. The state of a part is named by its first element behind the whole's name ([`super::checkpoint`] reads it).
    fn lay_out(p: &Param, range: &Range<usize>, kind: OptimizerKind, a: &mut Arena) -> Own {
        let n = p.value().len();
        let part = if range.len() == n { String::new() } else { format!("{PART}{}", range.start) };
        let part_shape = [range.len()];
        let shape = if range.len() == n { p.value().shape() } else { &part_shape };
        let mut tensor = |what: &str, dtype: DType, dims: &[usize]| {
            a.tensor(&format!("{}.{what}{part}", p.name), dtype, dims)
        };
        if kind == OptimizerKind::Adamw8bit && n >= LEAST_8BIT {
            let (words, tops) = Codes::sizes(range.len());
            return Own::Adamw8bit(["m", "v"].map(|m| Codes {
                codes: tensor(&format!("{m}{CODES}"), DType::U32, &[words]),
                tops: tensor(&format!("{m}{TOPS}"), DType::F32, &[tops]),
            }));
        }
        if kind == OptimizerKind::Adafactor {
            let [rows, cols] = *shape else {
                return Own::Adafactor(Squares::Whole(tensor("square", DType::F32, shape)));
            };
            let (row, col) = (tensor("row", DType::F32, &[rows]), tensor("col", DType::F32, &[cols]));
            return Own::Adafactor(Squares::Factored { row, col });
        }
        if kind == OptimizerKind::Muon && is_matrix(p) {
            return Own::Muon(tensor("momentum", DType::F32, shape));
        }
        Own::Adamw(["m", "v"].map(|m| tensor(m, DType::F32, shape)))
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

/// Between the name of a state and the first element of a part of it.
pub(super) const PART: char = ':';
/// How the names of 8-bit moments end: codes, four to a word, and magnitudes, one a block.
pub(super) const CODES: &str = "_codes";
/// See [`CODES`].
pub(super) const TOPS: &str = "_tops";

/// The state of these elements of the parameters, none where there are none, and what Muon computes in.
fn lay_out(
    params: &[Param],
    ranges: &[Range<usize>],
    kind: OptimizerKind,
    a: &mut Arena,
) -> (Vec<Option<Own>>, Option<Scratch>) {
    let mut of =
        |(p, range): (&Param, &Range<usize>)| (!range.is_empty()).then(|| Own::lay_out(p, range, kind, a));
    let own: Vec<Option<Own>> = params.iter().zip(ranges).map(&mut of).collect();
    let shape =
        |own: &Option<Own>| if let Some(Own::Muon(t)) = own { Some(t.rows_cols().into()) } else { None };
    let shapes: Vec<[usize; 2]> = own.iter().filter_map(shape).collect();
    let scratch = (!shapes.is_empty()).then(|| Scratch::lay_out(&shapes, a));
    (own, scratch)
}

fn whole(params: &[Param]) -> Vec<Range<usize>> {
    params.iter().map(|p| 0..p.value().len()).collect()
}

/// Bytes of an optimizer's state for these parameters, and of what it computes in.
pub fn state_bytes(params: &[Param], kind: OptimizerKind) -> usize {
    shared_state_bytes(params, kind, 1)
}

/// The same of what one of `size` ranks that share it has, at the most.
pub fn shared_state_bytes(params: &[Param], kind: OptimizerKind, size: usize) -> usize {
    let shares = Shares::new(params, kind, size);
    let of = |rank| {
        let ranges: Vec<_> = (0..params.len()).map(|i| shares.of(i, rank)).collect();
        Arena::measure(|a| drop(lay_out(params, &ranges, kind, a)))
    };
    (0..size).map(of).max().unwrap_or(0)
}

/// With whom the state is shared.
struct Together {
    team: Rc<Team>,
    /// Parameters, cut by the rank that updates them.
    parts: Vec<(Tensor, usize)>,
    /// Whether gradients are sums in the elements alone that this rank updates.
    own_sums: bool,
}

/// The state, and what is done with it.
pub struct Optimizer {
    settings: OptimizerSettings,
    /// In the order of the parameters.
    own: Vec<Option<Own>>,
    adamw: AdamWTable,
    adamw8: AdamW8Table,
    adafactor: AdafactorTable,
    muon: Option<MuonTable>,
    norm: GradNorm,
    changes: Vec<Changes>,
    together: Option<Together>,
}

/// The elements `range` of `t`; all of them in its own shape.
fn part_of(t: &Tensor, range: &Range<usize>) -> Result<Tensor> {
    if range.len() == t.len() { Ok(t.alias()) } else { t.flat().rows(range.clone()) }
}

impl Optimizer {
    /// Zero state for `params`, on their device.
    ///
    /// # Errors
    /// Too little memory.
    pub fn new(params: &[Param], settings: OptimizerSettings) -> Result<Optimizer> {
        Optimizer::over(params, &whole(params), settings)
    }

    /// Zero state for this rank's share of `params`; after a step all ranks have all parameters. `own_sums`: a step finds the gradient's sum over the ranks in this rank's elements alone.
    ///
    /// # Errors
    /// Too little memory.
    pub fn shared(
        params: &[Param],
        settings: OptimizerSettings,
        (team, shares, own_sums): (&Rc<Team>, &Shares, bool),
    ) -> Result<Optimizer> {
        let rank = team.world().rank();
        let ranges: Vec<_> = (0..params.len()).map(|i| shares.of(i, rank)).collect();
        let mut optimizer = Optimizer::over(params, &ranges, settings)?;
        if own_sums {
            let own = params.iter().zip(&ranges).filter(|(_, range)| !range.is_empty());
            let own = own.map(|(p, range)| part_of(&p.grad, range)).collect::<Result<_>>()?;
            optimizer.norm = GradNorm::new(own)?;
        }
        let mut parts = vec![];
        for (i, p) in params.iter().enumerate() {
            parts.extend(shares.cut(i, &p.writable().0)?);
        }
        optimizer.together = Some(Together { team: team.clone(), parts, own_sums });
        Ok(optimizer)
    }

    fn over(params: &[Param], ranges: &[Range<usize>], settings: OptimizerSettings) -> Result<Optimizer> {
        let device = params.first().map_or(Device::Cpu, |p| p.value().device());
        let ((own, scratch), _) =
            Arena::build("optimizer state", &device, |a| lay_out(params, ranges, settings.kind, a))?;
        let (mut adamw, mut adamw8, mut adafactor, mut muon) = (vec![], vec![], vec![], vec![]);
        for ((p, range), own) in params.iter().zip(ranges).zip(&own) {
            let Some(own) = own else { continue };
            let (param, grad) = (part_of(&p.writable().0, range)?, part_of(&p.grad, range)?);
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
        let (changes, together) = (params.iter().map(|p| p.writable().1).collect(), None);
        Ok(Optimizer { settings, own, adamw, adamw8, adafactor, muon, norm, changes, together })
    }

    /// Whether other ranks hold the rest of the state.
    pub fn is_shared(&self) -> bool {
        self.together.is_some()
    }

    /// The norm of the gradients' sum.
    fn global_norm(&mut self) -> Result<f64> {
        let own = self.norm.norm()?;
        let Some(together) = self.together.as_ref().filter(|t| t.own_sums) else { return Ok(own) };
        let squares = together.team.gather(&[own * own])?;
        Ok(squares.iter().map(|rank| rank[0]).sum::<f64>().sqrt())
    }

    /// Handles on the whole state, or this rank's, each tensor with a name of its own: what a checkpoint holds.
    pub fn state(&self) -> Vec<Tensor> {
        self.own.iter().flatten().flat_map(Own::tensors).collect()
    }

    /// One step (counted from 1) at `lr` of the parameters given to [`Optimizer::new`]; returns the gradient's global norm before clipping.
    pub fn step(&mut self, step: u64, lr: f64) -> Result<f64> {
        let norm = self.global_norm()?;
        let s = &self.settings;
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
        if let Some(Together { team, parts, .. }) = &mut self.together {
            team.hand_out(parts)?;
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
