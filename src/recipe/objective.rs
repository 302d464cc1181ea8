//! What `train` learns from its rows, and which of its settings say something about that.
use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    Recipe,
    train::{GuardAction, KeepSource, Method, Normalize, TrainSettings},
};
use crate::{
    data::questions::preferences::Rows,
    error::Error,
    train::preference::{PairLoss, PreferenceLoss},
};

/// What is learnt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Objective {
    /// The answers (supervised fine-tuning; of a model's own, distillation by the sequence, so that `sequence` is another name of it)
    #[default]
    #[value(alias = "sequence")]
    #[serde(alias = "sequence")]
    Sft,
    /// From pairs of a chosen and a rejected reply, against the model before training (direct preference optimization)
    Dpo,
    /// From the same pairs, without the model before training: the chosen answers, and the odds of the replies (odds ratio preference optimization)
    Orpo,
    /// From single replies that are desirable or not, against the model before training (Kahneman-Tversky optimization)
    Kto,
    /// The model's own answers in the target language: at each token what the model without its adapters would say next, shown the question and its own answer in the
    /// source language (cross-lingual on-policy self-distillation)
    OnPolicy,
    /// The translated answers, by what the same teacher would say at each of their tokens: its likeliest tokens, computed once before training (the off-policy form of on-policy)
    TopK,
}

/// How an on-policy objective draws and weighs answers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rollouts {
    /// Tokens of an answer at most.
    pub max_new_tokens: usize,
    /// Of the draws.
    pub temperature: f32,
    /// What a token of the vocabulary counts in a divergence at most.
    pub clip: Option<f32>,
}

/// How a teacher's stored distributions are learnt.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StoredTeacher {
    /// Likeliest tokens that are kept of each.
    pub k: usize,
    /// What the cross-entropy of the text counts beside the divergence.
    pub text: f64,
}

impl StoredTeacher {
    /// Refuses more tokens than the vocabulary has.
    pub fn check(self, vocab: usize) -> Result<()> {
        let message = || format!("top-k-logits is {}, and the vocabulary has {vocab} tokens", self.k);
        ensure!(self.k <= vocab, Error::setting("train.top-k-logits", message()));
        Ok(())
    }
}

impl Objective {
    /// As settings have it.
    pub fn name(self) -> &'static str {
        match self {
            Objective::Sft => "sft",
            Objective::Dpo => "dpo",
            Objective::Orpo => "orpo",
            Objective::Kto => "kto",
            Objective::OnPolicy => "on-policy",
            Objective::TopK => "top-k",
        }
    }

    /// The rows that it learns from.
    pub fn rows(self) -> Rows {
        match self {
            Objective::Sft => Rows::Answers,
            Objective::Dpo | Objective::Orpo => Rows::Pairs,
            Objective::Kto => Rows::Labels,
            Objective::OnPolicy => Rows::Questions,
            Objective::TopK => Rows::Taught,
        }
    }

    /// Whether it compares with the model before training.
    pub fn has_reference(self) -> bool {
        matches!(self, Objective::Dpo | Objective::Kto)
    }

    /// For people, with its paper; nothing for answers.
    pub fn in_words(self) -> &'static str {
        match self {
            Objective::Sft => "",
            Objective::Dpo => {
                "direct preference optimization (DPO, [arXiv 2305.18290](https://arxiv.org/abs/2305.18290))"
            }
            Objective::Orpo => {
                "odds ratio preference optimization (ORPO, [arXiv 2403.07691](https://arxiv.org/abs/2403.07691))"
            }
            Objective::Kto => {
                "Kahneman-Tversky optimization (KTO, [arXiv 2402.01306](https://arxiv.org/abs/2402.01306))"
            }
            Objective::OnPolicy => {
                "cross-lingual on-policy self-distillation (COPSD, [arXiv 2605.09548](https://arxiv.org/abs/2605.09548))"
            }
            Objective::TopK => {
                "cross-lingual self-distillation from the likeliest tokens of a teacher that is shown the answer in the source language"
            }
        }
    }
}

/// TRL's, where nothing is said.
const BETA: f64 = 0.1;
/// Tokens of an answer, where nothing is said: as `generate` has it.
const NEW_TOKENS: usize = 256;
/// The draws are the model's own distribution.
const TEMPERATURE: f32 = 1.0;
/// Tokens of a teacher's distribution that are kept, where nothing is said.
const TOP_K: usize = 64;

impl TrainSettings {
    /// What is learnt from preferences; none where answers are.
    pub fn preference(&self) -> Option<PreferenceLoss> {
        let beta = self.beta.unwrap_or(BETA);
        match self.objective {
            Objective::Sft | Objective::OnPolicy | Objective::TopK => None,
            Objective::Dpo => Some(PreferenceLoss::Dpo {
                loss: self.loss_type.unwrap_or_default(),
                beta,
                smoothing: self.label_smoothing.unwrap_or(0.0),
            }),
            Objective::Orpo => Some(PreferenceLoss::Orpo { beta }),
            Objective::Kto => Some(PreferenceLoss::Kto {
                beta,
                desirable: self.desirable_weight.unwrap_or(1.0),
                undesirable: self.undesirable_weight.unwrap_or(1.0),
            }),
        }
    }

    /// How answers are drawn; none where the rows have them.
    pub fn rollouts(&self) -> Option<Rollouts> {
        // A term above a limit is not learnt at all: of short answers, what the teacher knows best.
        let clip = self.kl_clip.unwrap_or(0.0) as f32;
        (self.objective == Objective::OnPolicy).then_some(Rollouts {
            max_new_tokens: self.max_new_tokens.unwrap_or(NEW_TOKENS),
            temperature: self.temperature.unwrap_or(TEMPERATURE),
            clip: (clip > 0.0).then_some(clip),
        })
    }

    /// How a teacher's stored distributions are learnt; none where there are none.
    pub fn stored_teacher(&self) -> Option<StoredTeacher> {
        (self.objective == Objective::TopK).then_some(StoredTeacher {
            k: self.top_k_logits.unwrap_or(TOP_K),
            text: self.cross_entropy_weight.unwrap_or(0.0),
        })
    }

    /// What leaves objective kto nothing to learn from.
    fn check_kto(&self) -> Result<()> {
        let weights = [self.desirable_weight, self.undesirable_weight];
        let nothing = "desirable-weight and undesirable-weight are 0, so that nothing is learnt: one of them has to be above 0";
        ensure!(weights != [Some(0.0); 2], Error::setting("train.desirable-weight", nothing));
        let alone =
            "batch-documents = 1 leaves objective kto no other reply to estimate its KL term on: 2 at least";
        let is_alone = self.objective == Objective::Kto && self.batch_documents == Some(1);
        ensure!(!is_alone, Error::setting("train.batch-documents", alone));
        Ok(())
    }

    /// Settings that say nothing with this objective.
    ///
    /// # Errors
    /// Those of another objective; what preferences are not trained with.
    pub(in crate::recipe) fn check_objective(&self) -> Result<()> {
        let objective = self.objective;
        let only = |is_set: bool, key: &str, of: &[Objective]| {
            let names: Vec<&str> = of.iter().map(|o| o.name()).collect();
            let message = || {
                format!("{key} belongs to objective {}: choose it, or leave {key} out", names.join(" or "))
            };
            ensure!(!is_set || of.contains(&objective), Error::setting(format!("train.{key}"), message()));
            Ok(())
        };
        only(self.beta.is_some(), "beta", &[Objective::Dpo, Objective::Orpo, Objective::Kto])?;
        only(self.loss_type.is_some(), "loss-type", &[Objective::Dpo])?;
        only(self.label_smoothing.is_some(), "label-smoothing", &[Objective::Dpo])?;
        only(self.desirable_weight.is_some(), "desirable-weight", &[Objective::Kto])?;
        only(self.undesirable_weight.is_some(), "undesirable-weight", &[Objective::Kto])?;
        only(self.max_new_tokens.is_some(), "max-new-tokens", &[Objective::OnPolicy])?;
        only(self.temperature.is_some(), "temperature", &[Objective::OnPolicy])?;
        only(self.kl_clip.is_some(), "kl-clip", &[Objective::OnPolicy])?;
        only(self.top_k_logits.is_some(), "top-k-logits", &[Objective::TopK])?;
        only(self.cross_entropy_weight.is_some(), "cross-entropy-weight", &[Objective::TopK])?;
        only(self.aligning().is_some(), "alignment-weight", &[Objective::Sft])?;
        self.check_kto()?;
        let kind = self.loss_type.unwrap_or_default();
        let message =
            "label-smoothing belongs to loss-type sigmoid or robust: choose it, or leave label-smoothing out";
        let smooth = matches!(kind, PairLoss::Sigmoid | PairLoss::Robust);
        ensure!(smooth || self.label_smoothing.is_none(), Error::setting("train.label-smoothing", message));
        match objective {
            Objective::Sft => Ok(()),
            Objective::OnPolicy | Objective::TopK => self.check_taught(),
            _ => self.check_preference(),
        }
    }

    /// What a teacher that is shown more does not go with.
    fn check_taught(&self) -> Result<()> {
        for (key, is_apt, why) in [
            (
                "method",
                self.method == Method::Lora,
                "the teacher is the model without its adapters, which full and scratch have none of: lora",
            ),
            (
                "temperature",
                self.temperature != Some(0.0),
                "the most likely answers alone are not drawn from the model: above 0",
            ),
            ("guard", self.guard != GuardAction::Reweight, "no source rows are trained on: log or stop"),
            ("keep-source", self.keep_source == KeepSource::CrossEntropy, "no source rows are trained on"),
        ] {
            let message = || format!("{key} does not go with objective {}: {why}", self.objective.name());
            ensure!(is_apt, Error::setting(format!("train.{key}"), message()));
        }
        Ok(())
    }

    /// What preferences are not trained with.
    fn check_preference(&self) -> Result<()> {
        let objective = self.objective;
        for (key, is_apt, why) in [
            (
                "method",
                self.method != Method::Scratch,
                "a model from nothing has no replies to compare: lora or full",
            ),
            (
                "normalize",
                self.normalize == Normalize::Tokens,
                "a loss of preferences is averaged over rows already",
            ),
            ("guard", self.guard == GuardAction::Log, "rows of preferences have no source rows to look at"),
            (
                "keep-source",
                self.keep_source == KeepSource::CrossEntropy,
                "rows of preferences have no source rows to keep",
            ),
        ] {
            let message = || format!("{key} does not go with objective {}: {why}", objective.name());
            ensure!(is_apt, Error::setting(format!("train.{key}"), message()));
        }
        Ok(())
    }
}

impl Recipe {
    /// What token shards depend on beside their examples.
    pub fn packing(&self) -> Value {
        match self.train.objective.rows() {
            Rows::Answers => json!([self.model, self.pack]),
            rows => json!([self.model, self.pack, rows]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_other_objectives_are_refused_by_name() {
        let dpo = TrainSettings { objective: Objective::Dpo, ..TrainSettings::default() };
        let beta = Some(0.3);
        assert_eq!(
            TrainSettings { beta, ..dpo.clone() }.preference(),
            Some(PreferenceLoss::Dpo { loss: PairLoss::Sigmoid, beta: 0.3, smoothing: 0.0 })
        );
        assert!(TrainSettings { label_smoothing: beta, ..dpo.clone() }.check().is_ok());
        for (settings, key) in [
            (TrainSettings { beta, ..TrainSettings::default() }, "train.beta"),
            (TrainSettings { loss_type: Some(PairLoss::Ipo), ..TrainSettings::default() }, "train.loss-type"),
            (
                TrainSettings { loss_type: Some(PairLoss::Ipo), label_smoothing: beta, ..dpo.clone() },
                "train.label-smoothing",
            ),
            (TrainSettings { desirable_weight: beta, ..dpo.clone() }, "train.desirable-weight"),
            (TrainSettings { undesirable_weight: beta, ..dpo.clone() }, "train.undesirable-weight"),
            (
                TrainSettings { objective: Objective::Kto, batch_documents: Some(1), ..dpo.clone() },
                "train.batch-documents",
            ),
            (
                TrainSettings {
                    objective: Objective::Kto,
                    desirable_weight: Some(0.0),
                    undesirable_weight: Some(0.0),
                    ..dpo.clone()
                },
                "train.desirable-weight",
            ),
            (TrainSettings { method: Method::Scratch, ..dpo.clone() }, "train.method"),
            (TrainSettings { normalize: Normalize::Sentences, ..dpo.clone() }, "train.normalize"),
            (TrainSettings { guard: GuardAction::Stop, ..dpo.clone() }, "train.guard"),
            (TrainSettings { keep_source: KeepSource::Kl, ..dpo.clone() }, "train.keep-source"),
        ] {
            let error = settings.check().unwrap_err();
            let found = error.downcast_ref::<Error>();
            assert!(matches!(found, Some(Error::Setting { name, .. }) if name == key), "{key}: {error:#}");
        }
    }
}
