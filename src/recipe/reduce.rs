//! How gradients become one, of `train`.
use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::{
    objective::Objective,
    train::{KeepSource, Method, TrainSettings},
};
use crate::{error::Error, train::shares::Shard};

/// How the gradients of a step's micro-batches become one, in one process and over several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Reduce {
    /// Each rank takes a share of the step's documents, and NCCL sums the ranks: the last bits depend on how many there are
    #[default]
    AllReduce,
    /// Micro-batches are cut and summed in one order, whatever rank computes them: the same bits from any number of ranks, one included; takes a copy of the gradients, and a step
    /// needs at least as many micro-batches as ranks to use all of them
    Fixed,
}

impl Reduce {
    /// Whether it is what settings that do not name it mean.
    pub fn is_usual(&self) -> bool {
        *self == Reduce::AllReduce
    }
}

/// What ranks send of a gradient.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum ReduceDtype {
    /// All of it
    #[default]
    F32,
    /// Its upper half, and so half the bytes: rounded to bf16 before it is sent, and again at each addition
    Bf16,
}

impl ReduceDtype {
    /// Whether it is what settings that do not name it mean.
    pub fn is_usual(&self) -> bool {
        *self == ReduceDtype::F32
    }
}

impl TrainSettings {
    /// Weights in parts are those of a frozen base, and every pass through it is one of all ranks; what is summed in one order is not rounded on its way.
    pub(super) fn check_sums(&self) -> Result<()> {
        let whole = self.shard != Shard::Weights;
        for (key, ok, message) in [
            (
                "reduce-dtype",
                self.reduce == Reduce::AllReduce || self.reduce_dtype == ReduceDtype::F32,
                "reduce-dtype bf16 belongs to reduce all-reduce: reduce fixed adds what each rank computed, bit for bit; leave one of the two out",
            ),
            (
                "shard",
                whole || self.method == Method::Lora,
                "shard weights parts a frozen base, and goes with method lora: use shard optimizer",
            ),
            (
                "shard",
                whole || !self.dora,
                "shard weights has no layer whole when DoRA takes the norms of its rows: leave one of the two out",
            ),
            ("shard", whole || self.objective == Objective::Sft, "shard weights goes with objective sft"),
            (
                "shard",
                whole || self.keep_source == KeepSource::CrossEntropy,
                "shard weights passes each batch through the layers once, and keep-source kl twice: leave one of the two out",
            ),
        ] {
            ensure!(ok, Error::setting(format!("train.{key}"), message));
        }
        Ok(())
    }
}
