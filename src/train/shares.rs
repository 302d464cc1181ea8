//! Whose work each trained element is where ranks share an optimizer's state (ZeRO, Rajbhandari et al. 2020, stage 1).
use std::ops::Range;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::optimizer::OptimizerKind;
use crate::{distributed::beside::Piece, models::transformer::train_step::Param, tensor::Tensor};

/// What the ranks of a training keep in parts, one on each (Rajbhandari et al. 2020).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Shard {
    /// Nothing: every rank has all
    #[default]
    None,
    /// The optimizer's state (ZeRO-1): each rank updates a part of what is trained, and hands it to the others
    Optimizer,
    /// The weights of frozen layers, too, each layer gathered before its turn: of adapters on a base in f32 or bf16
    Weights,
}

impl Shard {
    /// Whether it is what settings that do not name it mean.
    pub fn is_usual(&self) -> bool {
        *self == Shard::None
    }
}

/// Elements that lie together: a block of 8-bit moments, and a kernel's row of vectors.
const TOGETHER: usize = 256;

/// The elements of every trained tensor that each rank updates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shares {
    /// By parameter and rank; empty where the rank has none.
    ranges: Vec<Vec<Range<usize>>>,
}

impl Shares {
    /// Of `size` ranks. Where an optimizer goes element by element each rank has about as many of each tensor, in whole blocks of 256; where it does not, a tensor is one rank's. Either way the rank
    /// with the least so far begins.
    pub fn new(params: &[Param], kind: OptimizerKind, size: usize) -> Shares {
        let mut held = vec![0; size];
        let mut of = |p: &Param| {
            let n = p.value().len();
            let each = if kind.by_element(p) { n.div_ceil(size).next_multiple_of(TOGETHER) } else { n };
            let first = (0..size).min_by_key(|&rank| held[rank]).unwrap_or(0);
            let mut ranges = vec![0..0; size];
            for i in 0..size {
                let rank = (first + i) % size;
                ranges[rank] = (i * each).min(n)..((i + 1) * each).min(n);
                held[rank] += ranges[rank].len();
            }
            ranges
        };
        Shares { ranges: params.iter().map(&mut of).collect() }
    }

    /// The elements of parameter `i` that `rank` updates.
    pub fn of(&self, i: usize, rank: usize) -> Range<usize> {
        self.ranges[i][rank].clone()
    }

    /// `t`, which has an element for each of parameter `i`, in one dimension, cut by whose they are.
    ///
    /// # Errors
    /// A tensor of another length.
    pub fn cut(&self, i: usize, t: &Tensor) -> Result<Vec<(Tensor, usize)>> {
        let of = |(rank, range): (usize, &Range<usize>)| Ok((t.flat().rows(range.clone())?, rank));
        let owned = self.ranges[i].iter().enumerate().filter(|(_, range)| !range.is_empty());
        owned.map(of).collect()
    }

    /// The pieces of a gradient that are one rank's each.
    ///
    /// # Errors
    /// A gradient of another length.
    pub fn pieces(&self, i: usize, gradient: &Tensor) -> Result<Vec<Piece>> {
        let piece = |(gradient, owner)| Piece { gradient, owner: Some(owner) };
        Ok(self.cut(i, gradient)?.into_iter().map(piece).collect())
    }
}
