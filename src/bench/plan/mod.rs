//! `sdrrl plan`: what a training step would take on GPUs that are not at hand: time by a roofline, bytes over links, memory. docs/plan.md has the formulas, and how near
//! they come to what other systems have published.
pub mod card;
pub mod network;
pub mod step;

use anyhow::{Result, ensure};
use serde::Serialize;

use crate::{
    models::transformer::{
        lora_config::LoraConfig,
        spec::Spec,
        train_step::outline::Outline,
        tree::{Leaf, Place},
    },
    tensor::DType,
    train::{
        optimizer::{OptimizerKind, shared_state_bytes},
        shares::Shard,
    },
};
use card::Rates;
use network::Ranks;
use step::{Seconds, Work, estimate, useful_flop};

/// What is to be planned.
#[derive(Clone, Debug)]
pub struct Question {
    /// The model.
    pub spec: Spec,
    /// Of each rank.
    pub documents: usize,
    /// Tokens of a document.
    pub length: usize,
    /// Micro-batches of a step, of each rank.
    pub micro_batches: usize,
    /// New adapters; `None`: all weights are trained.
    pub lora: Option<LoraConfig>,
    /// What is kept in parts.
    pub shard: Shard,
    /// Bytes of a gradient as it is sent.
    pub gradient_bytes: usize,
    /// Whether sums start while the backward pass runs.
    pub overlap: bool,
    /// Rates of GPU and links.
    pub rates: Rates,
}

/// The answer for one number of ranks.
#[derive(Clone, Debug, Serialize)]
pub struct Answer {
    /// Ranks, one a GPU.
    pub ranks: usize,
    /// Tokens of a step, of all ranks.
    pub tokens: usize,
    /// Seconds of a step.
    pub step_seconds: f64,
    /// Of these, waiting for other ranks.
    pub waiting_seconds: f64,
    /// Bytes that each rank sends in a step.
    pub sent_bytes: f64,
    /// Tokens/s of all ranks.
    pub tokens_per_second: f64,
    /// Products and attention that the step needs, FLOP/s of one GPU.
    pub useful_flops: f64,
    /// Seconds of one GPU by part.
    pub parts: Vec<(&'static str, f64)>,
    /// Bytes on one GPU by purpose.
    pub memory: Vec<(String, f64)>,
}

impl Answer {
    /// Bytes on one GPU.
    pub fn memory_bytes(&self) -> f64 {
        self.memory.iter().map(|(_, bytes)| bytes).sum()
    }
}

impl Question {
    /// Of `ranks`.
    ///
    /// # Errors
    /// A number that is 0; adapter settings that adapt nothing.
    pub fn answer(&self, ranks: Ranks) -> Result<Answer> {
        let numbers = [ranks.all, ranks.per_node, self.documents, self.length, self.micro_batches];
        ensure!(
            numbers.iter().all(|&n| n > 0) && ranks.are_whole(),
            "numbers of GPUs, documents, tokens and micro-batches start at 1, and machines are whole"
        );
        let rates = &self.rates;
        let weights = self.spec.parameters() * if self.lora.is_some() { 2 } else { 4 };
        let (memory, trained) = self.memory(ranks, weights)?;
        let lora_rank = self.lora.as_ref().map(|lora| lora.r);
        let (documents, length, micro_batches) = (self.documents, self.length, self.micro_batches);
        let mut work = Work { documents, length, micro_batches, lora_rank, trained };
        let useful = useful_flop(&self.spec, work);
        if self.shard != Shard::None {
            work.trained = trained.div_ceil(ranks.all);
        }
        let parts = estimate(&self.spec, work, rates);
        let gradients = (trained * self.gradient_bytes) as f64;
        let (waiting, sent) = self.communication(ranks, gradients, weights as f64, &parts);
        let step_seconds = parts.total() + waiting;
        let tokens = documents * length * micro_batches * ranks.all;
        Ok(Answer {
            ranks: ranks.all,
            tokens,
            step_seconds,
            waiting_seconds: waiting,
            sent_bytes: sent,
            tokens_per_second: tokens as f64 / step_seconds,
            useful_flops: useful / step_seconds,
            parts: named(&parts),
            memory,
        })
    }

    /// Seconds of waiting for other ranks, and bytes sent by each.
    fn communication(&self, ranks: Ranks, gradients: f64, weights: f64, parts: &Seconds) -> (f64, f64) {
        let (link, network, latency) = (self.rates.link, self.rates.network, self.rates.latency);
        let sum = ranks.all_reduce(gradients, link, network, latency);
        let layers = self.spec.layers.len() as f64;
        // The last layer's gradients come last, with nothing left to hide behind.
        let hidden = if self.overlap { parts.backward * (layers - 1.0) / layers } else { 0.0 };
        let (mut waiting, mut sent) = ((sum - hidden).max(sum / layers), ranks.sent(gradients));
        if !self.overlap {
            waiting = sum;
        }
        if self.shard == Shard::Weights {
            let (times, compute) = (self.micro_batches as f64, parts.total() - parts.optimizer);
            let gathers = 2.0 * times * ranks.all_gather(weights, link, network, layers * latency);
            waiting += (gathers - compute).max(gathers / layers);
            sent += times * ranks.sent(weights);
        }
        (waiting, sent)
    }

    /// Bytes on one GPU by purpose, and the number of trained parameters.
    fn memory(&self, ranks: Ranks, weights: usize) -> Result<(Vec<(String, f64)>, usize)> {
        let lora = self.lora.clone();
        let acts = if lora.is_some() { DType::Bf16 } else { DType::F32 };
        let max_tokens = self.documents * self.length;
        let (keeps_source, distils) = (false, false);
        let outline = Outline {
            spec: &self.spec,
            weights,
            lora,
            max_tokens,
            acts,
            on_gpu: true,
            keeps_source,
            distils,
        };
        let (memory, params) = outline.measure()?;
        let trained = params.iter().map(|p| p.value().len()).sum();
        let sharing = if self.shard == Shard::None { 1 } else { ranks.all };
        let state = shared_state_bytes(&params, OptimizerKind::Adamw, sharing);
        let mut memory: Vec<(String, f64)> = memory.into_iter().map(|(what, n)| (what, n as f64)).collect();
        if self.shard == Shard::Weights && ranks.all > 1 {
            // Embedding, head and norms are whole on each.
            let of_layers = |leaf: &Leaf| matches!(leaf.place, Place::Weight(..));
            let leaves = self.spec.leaves().into_iter().filter(of_layers);
            let elements: usize = leaves.map(|leaf| leaf.dims.iter().product::<usize>()).sum();
            let layers = elements as f64 * (weights as f64 / self.spec.parameters() as f64);
            let part = layers / ranks.all as f64;
            memory.iter_mut().filter(|(what, _)| what == "weights").for_each(|(_, n)| *n += part - layers);
            memory.push(("two layers' weights".into(), 2.0 * layers / self.spec.layers.len() as f64));
        }
        memory.push(("state of adamw".into(), state as f64));
        Ok((memory, trained))
    }
}

fn named(s: &Seconds) -> Vec<(&'static str, f64)> {
    vec![
        ("products with weights", s.products),
        ("products with adapters", s.adapters),
        ("attention", s.attention),
        ("norms, gates, rotation", s.elementwise),
        ("head and loss", s.head),
        ("gaps between kernels", s.gaps),
        ("optimizer", s.optimizer),
    ]
}

#[cfg(test)]
mod tests;
