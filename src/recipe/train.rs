//! Settings of `train`.
mod check;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::objective::Objective;
pub use super::reduce::{Reduce, ReduceDtype};
use crate::{
    models::weights::stored::Stored,
    train::{optimizer::OptimizerKind, preference::PairLoss, schedule::ScheduleKind, shares::Shard},
};

/// What is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Adapters on a frozen base
    Lora,
    /// Every weight of a pretrained model
    Full,
    /// Every weight of a randomly initialised model
    Scratch,
}

/// What the loss is averaged over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Normalize {
    /// Every trained token of the step counts the same
    Tokens,
    /// Every sentence (document) of the step counts the same
    Sentences,
}

/// What to do when the model is forgetting the source language.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum GuardAction {
    /// Only log it
    Log,
    /// Stop training
    Stop,
    /// Double the weight of source rows (pair S>S), up to eight times their own
    Reweight,
}

/// What source-language rows (pair S>S) are learnt by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum KeepSource {
    /// Their text, as every other row
    #[default]
    CrossEntropy,
    /// Instead of their text the base model's distribution over each token: the forward KL divergence of the model without its adapters to the model in training
    Kl,
    /// Both, added
    Both,
}

fn is_text(keep: &KeepSource) -> bool {
    *keep == KeepSource::CrossEntropy
}

fn is_whole(weight: &f64) -> bool {
    *weight == 1.0
}

/// The share of the steps over which a `wsd` schedule falls, where nothing is said.
const DECAY: f64 = 0.1;

fn is_zero(x: &f64) -> bool {
    *x == 0.0
}

/// Bits per byte that the guard's text may rise by: more than answers sampled at temperature 1 cost English, less than greedy ones do.
const MAX_BITS: f64 = 0.02;

fn is_usual_rise(bits: &f64) -> bool {
    *bits == MAX_BITS
}

fn is_sft(objective: &Objective) -> bool {
    *objective == Objective::Sft
}

fn is_usual_decay(share: &f64) -> bool {
    *share == DECAY
}

/// How to train.
#[derive(Clone, Debug, PartialEq, clap::Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct TrainSettings {
    /// What is trained
    #[arg(long, value_enum, default_value = "lora")]
    pub method: Method,
    /// What is learnt from the rows
    #[arg(long, value_enum, default_value = "sft")]
    #[serde(skip_serializing_if = "is_sft")]
    pub objective: Objective,
    /// With objective dpo or kto: how closely the model is kept to what it was; with orpo: the weight of the odds [default: 0.1]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta: Option<f64>,
    /// With objective dpo: how a pair's margin becomes a loss [default: sigmoid]
    #[arg(long, value_enum)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_type: Option<PairLoss>,
    /// With objective dpo and loss-type sigmoid or robust: the share of pairs that may be the wrong way round [default: 0]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label_smoothing: Option<f64>,
    /// With objective kto: weight of desirable replies [default: 1]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub desirable_weight: Option<f64>,
    /// With objective kto: weight of the other replies [default: 1]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub undesirable_weight: Option<f64>,
    /// With objective on-policy: tokens of an answer at most [default: 256]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_new_tokens: Option<usize>,
    /// With objective on-policy: of the draws of answers; 1 is the model's own distribution [default: 1]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// With objective on-policy: what one word of the vocabulary counts at most in the divergence at a token, nats (COPSD: 0.05); 0 is without limit [default: 0]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl_clip: Option<f64>,
    /// With objective top-k: how many of the teacher's likeliest tokens are kept at each token of an answer; all others are one bucket [default: 64]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k_logits: Option<usize>,
    /// With objective top-k: factor of the cross-entropy of the answer's text, which is added to the divergence [default: 0]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cross_entropy_weight: Option<f64>,
    /// Data type of a whole model's weights on disk: f32, bf16 or f16 [default: that of the base; f32 from scratch or of a quantised base]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub save_dtype: Option<Stored>,
    /// Rank of the adapters
    #[arg(long, default_value_t = 8)]
    pub lora_rank: usize,
    /// LoRA alpha: adapters are scaled by alpha / rank
    #[arg(long, default_value_t = 16.0)]
    pub lora_alpha: f64,
    /// Modules to adapt; all-linear means all of them but those of experts
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"
    )]
    pub lora_targets: Vec<String>,
    /// Scale by alpha / sqrt(rank) (rsLoRA)
    #[arg(long)]
    pub rslora: bool,
    /// Learn magnitudes and directions separately (DoRA)
    #[arg(long)]
    pub dora: bool,
    /// Share of an adapter's inputs that training drops at random, as PEFT's lora_dropout; 0 drops nothing
    #[arg(long, default_value_t = 0.0)]
    #[serde(skip_serializing_if = "is_zero")]
    pub lora_dropout: f64,
    /// Learning rate of B relative to that of A (LoRA+); 1 is plain LoRA
    #[arg(long, default_value_t = 1.0)]
    pub lora_plus_ratio: f64,
    /// How parameters follow their gradients
    #[arg(long, value_enum, default_value = "adamw")]
    #[serde(skip_serializing_if = "OptimizerKind::is_usual")]
    pub optimizer: OptimizerKind,
    /// Peak learning rate [default: 1e-4 for adapters, 2e-4 with --data; 2e-5 for all weights, 1e-3 from scratch; with a preference objective 1e-5 for adapters,
    /// 1e-6 for all weights]
    #[arg(long)]
    pub lr: Option<f64>,
    /// Shape of the learning rate after the warm-up
    #[arg(long, value_enum, default_value = "cosine")]
    pub schedule: ScheduleKind,
    /// Share of the steps used for warm-up
    #[arg(long, default_value_t = 0.03)]
    pub warmup_ratio: f64,
    /// Start the warm-up above a learning rate of 0, so that no step is wasted (always with --data)
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub warmup_above_zero: bool,
    /// With schedule wsd: share of the steps, the last, over which the learning rate falls
    #[arg(long, default_value_t = DECAY)]
    #[serde(skip_serializing_if = "is_usual_decay")]
    pub decay_ratio: f64,
    /// Final learning rate, as a share of the peak
    #[arg(long, default_value_t = 0.0)]
    pub min_lr_ratio: f64,
    /// Passes over the data
    #[arg(long, default_value_t = 3.0)]
    pub epochs: f64,
    /// Stop after this many steps (0: after the epochs)
    #[arg(long, default_value_t = 0)]
    pub max_steps: u64,
    /// Documents, or rows of preferences, per optimizer step [default: 128; with --data about 4096 tokens' worth, and fewer for a small set]
    #[arg(long)]
    pub batch_documents: Option<usize>,
    /// Tokens per forward pass; memory grows with it, results change only by rounding
    #[arg(long, default_value_t = 2048)]
    pub batch_tokens: usize,
    /// Decoupled weight decay of matrices and adapters
    #[arg(long, default_value_t = 0.0)]
    pub weight_decay: f64,
    /// AdamW's beta1
    #[arg(long, default_value_t = 0.9)]
    pub beta1: f64,
    /// AdamW's beta2
    #[arg(long, default_value_t = 0.999)]
    pub beta2: f64,
    /// AdamW's epsilon
    #[arg(long, default_value_t = 1e-8)]
    pub eps: f64,
    /// Clip gradients to this global norm (0: off)
    #[arg(long, default_value_t = 1.0)]
    pub clip: f64,
    /// What the loss is averaged over
    #[arg(long, value_enum, default_value = "tokens")]
    pub normalize: Normalize,
    /// Steps between validations (0: once per epoch)
    #[arg(long, default_value_t = 0)]
    pub eval_every: u64,
    /// Stop after this many validations without improvement (0: never)
    #[arg(long, default_value_t = 3)]
    pub patience: usize,
    /// Smallest decrease of the validation loss that counts as an improvement
    #[arg(long, default_value_t = 0.0)]
    pub min_delta: f64,
    /// What to do when the model is forgetting the source language
    #[arg(long, value_enum, default_value = "log")]
    pub guard: GuardAction,
    /// The model is forgetting when the loss on held-out source rows exceeds its value before training by this many nats
    #[arg(long, default_value_t = 0.1)]
    pub guard_max_rise: f64,
    /// Plain text of the source language that is not trained on, one a line: the guard goes by the bits per byte that the model needs for it, as the
    /// metric bits-per-byte has it with at most 512 tokens of a line
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guard_file: Option<PathBuf>,
    /// With guard-file, the model is forgetting when its bits per byte exceed those before training by this (0.02 unless given)
    #[arg(long, default_value_t = MAX_BITS)]
    #[serde(skip_serializing_if = "is_usual_rise")]
    pub guard_max_bits: f64,
    /// What source-language rows (pair S>S) are learnt by (cross-entropy unless given)
    #[arg(long, value_enum, default_value = "cross-entropy")]
    #[serde(skip_serializing_if = "is_text")]
    pub keep_source: KeepSource,
    /// Factor of the KL divergence with keep-source kl or both (1 unless given)
    #[arg(long, default_value_t = 1.0)]
    #[serde(skip_serializing_if = "is_whole")]
    pub keep_source_weight: f64,
    /// Parallel sentences that are aligned in the middle of the model beside the task (arXiv 2502.14830): a tab-separated file, the source side of a Moses pair, or a folder of `parallel`. In recipes
    /// those of its `parallel` table unless given
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alignment_file: Option<PathBuf>,
    /// Target side of a Moses pair
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alignment_target_file: Option<PathBuf>,
    /// Factor of the alignment loss, nats a pair, beside the task's; in recipes a number above 0 begins alignment [default: 1 with alignment-file, else 0]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alignment_weight: Option<f64>,
    /// Layers below the hidden states that are aligned, 1 to the model's number of them [default: half of them]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alignment_layer: Option<usize>,
    /// What cosines are divided by in the alignment loss [default: 0.1]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alignment_temperature: Option<f64>,
    /// Pairs of sentences an optimizer step: each other's negatives [default: 32]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alignment_batch: Option<usize>,
    /// How gradients of micro-batches and ranks are summed (all-reduce unless given)
    #[arg(long, value_enum, default_value = "all-reduce")]
    #[serde(skip_serializing_if = "Reduce::is_usual")]
    pub reduce: Reduce,
    /// With reduce all-reduce: type of the gradients that ranks send (f32 unless given)
    #[arg(long, value_enum, default_value = "f32")]
    #[serde(skip_serializing_if = "ReduceDtype::is_usual")]
    pub reduce_dtype: ReduceDtype,
    /// What several ranks keep in parts, one on each (none unless given); --out must then be one folder for all of them
    #[arg(long, value_enum, default_value = "none")]
    #[serde(skip_serializing_if = "Shard::is_usual")]
    pub shard: Shard,
    /// Steps between checkpoints (0: only when interrupted)
    #[arg(long, default_value_t = 50)]
    pub checkpoint_every: u64,
    /// How many of the newest checkpoints to keep while training; all are deleted at the end
    #[arg(long, default_value_t = 2)]
    pub keep_checkpoints: usize,
    /// Seed of the adapters' initial values and of the order of documents
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
}

impl Default for TrainSettings {
    fn default() -> TrainSettings {
        TrainSettings {
            method: Method::Lora,
            objective: Objective::Sft,
            beta: None,
            loss_type: None,
            label_smoothing: None,
            desirable_weight: None,
            undesirable_weight: None,
            max_new_tokens: None,
            temperature: None,
            kl_clip: None,
            top_k_logits: None,
            cross_entropy_weight: None,
            save_dtype: None,
            lora_rank: 8,
            lora_alpha: 16.0,
            lora_targets: crate::models::transformer::lora::all_linears(),
            rslora: false,
            dora: false,
            lora_dropout: 0.0,
            lora_plus_ratio: 1.0,
            optimizer: OptimizerKind::Adamw,
            lr: None,
            schedule: ScheduleKind::Cosine,
            warmup_ratio: 0.03,
            warmup_above_zero: false,
            decay_ratio: DECAY,
            min_lr_ratio: 0.0,
            epochs: 3.0,
            max_steps: 0,
            batch_documents: None,
            batch_tokens: 2048,
            weight_decay: 0.0,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            clip: 1.0,
            normalize: Normalize::Tokens,
            eval_every: 0,
            patience: 3,
            min_delta: 0.0,
            guard: GuardAction::Log,
            guard_max_rise: 0.1,
            guard_file: None,
            guard_max_bits: MAX_BITS,
            keep_source: KeepSource::CrossEntropy,
            keep_source_weight: 1.0,
            alignment_file: None,
            alignment_target_file: None,
            alignment_weight: None,
            alignment_layer: None,
            alignment_temperature: None,
            alignment_batch: None,
            reduce: Reduce::AllReduce,
            reduce_dtype: ReduceDtype::F32,
            shard: Shard::None,
            checkpoint_every: 50,
            keep_checkpoints: 2,
            seed: 42,
        }
    }
}
