//! Settings of `train` that do not go together.
use anyhow::{Context, Result, ensure};

use super::{KeepSource, Method, TrainSettings, is_usual_decay, is_usual_rise};
use crate::{
    error::Error,
    train::{held_out_text, optimizer::OptimizerKind, schedule::ScheduleKind},
};

impl TrainSettings {
    /// Settings that say nothing beside the others.
    ///
    /// # Errors
    /// A share of decay where the schedule has none, dropout where there are no adapters, AdamW's numbers for an optimizer that has none of them; a file of the guard
    /// that cannot be read or holds no text, a limit for it without the file; a source that is kept where the base model is not, or whose weight says nothing; settings of
    /// another objective, or of an alignment that there is not; sentences for it that cannot be read.
    pub fn check(&self) -> Result<()> {
        let unused = !is_usual_decay(&self.decay_ratio) && self.schedule != ScheduleKind::Wsd;
        let message = "decay-ratio belongs to schedule wsd: choose it, or leave decay-ratio out";
        ensure!(!unused, Error::setting("train.decay-ratio", message));
        let none = "lora-dropout drops inputs of adapters: it goes with method lora, or leave it out";
        let adapters = self.method == Method::Lora || self.lora_dropout == 0.0;
        ensure!(adapters, Error::setting("train.lora-dropout", none));
        let usual = TrainSettings::default();
        let moments = [
            ("beta1", self.beta1, usual.beta1),
            ("beta2", self.beta2, usual.beta2),
            ("eps", self.eps, usual.eps),
        ];
        for (key, own, usual) in moments {
            let used = own == usual || self.optimizer != OptimizerKind::Adafactor;
            let message =
                format!("{key} is a number of AdamW, which optimizer adafactor does not use: leave it out");
            ensure!(used, Error::setting(format!("train.{key}"), message));
        }
        let alone = "guard-max-bits belongs to guard-file: name one, or use guard-max-rise";
        let given = self.guard_file.is_some() || is_usual_rise(&self.guard_max_bits);
        ensure!(given, Error::setting("train.guard-max-bits", alone));
        let adapters = self.method == Method::Lora || self.keep_source == KeepSource::CrossEntropy;
        let changed = "keep-source compares with the base model, which method full or scratch changes: it goes with method lora";
        ensure!(adapters, Error::setting("train.keep-source", changed));
        let weighs = self.keep_source != KeepSource::CrossEntropy
            || self.keep_source_weight == usual.keep_source_weight;
        let unused = "keep-source-weight belongs to keep-source kl or both: choose one, or leave it out";
        ensure!(weighs, Error::setting("train.keep-source-weight", unused));
        self.check_sums()?;
        self.check_objective()?;
        self.check_alignment()?;
        self.guard_file
            .as_ref()
            .map_or(Ok(()), |file| held_out_text::texts(file).map(drop).context("train.guard-file"))
    }
}
