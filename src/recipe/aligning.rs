//! What of `train`'s settings says how parallel sentences are aligned in the middle of the model.
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::{Recipe, train::TrainSettings};
use crate::{
    data::parallel::{Sentences, sentences},
    error::Error,
};

/// How parallel sentences are aligned; the numbers are those of Liu and Niehues 2025 (arXiv 2502.14830) where nothing is said.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Aligning {
    /// Factor of the loss.
    pub weight: f64,
    /// Layers below the states; none: half of the model's.
    pub layer: Option<usize>,
    /// What cosines are divided by.
    pub temperature: f64,
    /// Pairs a step.
    pub batch: usize,
}

impl Aligning {
    /// The layer in a model of so many: that of `align` and of alignment tasks, where nothing is said.
    ///
    /// # Errors
    /// A layer that the model has not.
    pub fn layer_of(&self, layers: usize) -> Result<usize> {
        let layer = self.layer.unwrap_or(layers.div_ceil(2));
        let message = || {
            format!(
                "alignment-layer is {layer}: the model has {layers} layers, and 1 to {layers} were expected"
            )
        };
        ensure!((1..=layers).contains(&layer), Error::setting("train.alignment-layer", message()));
        Ok(layer)
    }

    /// The sentences of `file`, as many at least as a step takes.
    ///
    /// # Errors
    /// Files that cannot be read or do not belong together; too few sentences.
    pub fn sentences(&self, file: &Path, target: Option<&Path>) -> Result<Sentences> {
        let found = sentences(file, target)?;
        self.check_number(file, found.pairs.len())?;
        Ok(found)
    }

    /// An error if `file` has fewer pairs than a step takes.
    pub fn check_number(&self, file: &Path, pairs: usize) -> Result<()> {
        let few = || {
            format!(
                "alignment-batch is {}, and {} has {pairs} pairs of sentences: lower it, or give more",
                self.batch,
                file.display()
            )
        };
        ensure!(self.batch <= pairs, Error::setting("train.alignment-batch", few()));
        Ok(())
    }
}

impl TrainSettings {
    /// How parallel sentences are aligned; none where they are not.
    pub fn aligning(&self) -> Option<Aligning> {
        let usual = if self.alignment_file.is_some() { 1.0 } else { 0.0 };
        let weight = self.alignment_weight.unwrap_or(usual);
        (weight > 0.0).then(|| Aligning {
            weight,
            layer: self.alignment_layer,
            temperature: self.alignment_temperature.unwrap_or(0.1),
            batch: self.alignment_batch.unwrap_or(32),
        })
    }

    /// Settings of an alignment that there is not, and files that it cannot take.
    pub(in crate::recipe) fn check_alignment(&self) -> Result<()> {
        let aligning = self.aligning();
        for (is_set, key) in [
            (self.alignment_file.is_some(), "alignment-file"),
            (self.alignment_target_file.is_some(), "alignment-target-file"),
            (self.alignment_layer.is_some(), "alignment-layer"),
            (self.alignment_temperature.is_some(), "alignment-temperature"),
            (self.alignment_batch.is_some(), "alignment-batch"),
        ] {
            let unused = || {
                format!(
                    "{key} says nothing without an alignment: name alignment-file or an alignment-weight above 0, or leave it out"
                )
            };
            ensure!(!is_set || aligning.is_some(), Error::setting(format!("train.{key}"), unused()));
        }
        let target = self.alignment_target_file.as_deref();
        let alone = "alignment-target-file is the other side of alignment-file: name that, too";
        let Some(file) = &self.alignment_file else {
            ensure!(target.is_none(), Error::setting("train.alignment-target-file", alone));
            return Ok(());
        };
        aligning.map_or(Ok(()), |a| a.sentences(file, target).map(drop).context("train.alignment-file"))
    }
}

impl Recipe {
    /// Whether the pairs of stage `parallel` are those that training aligns.
    pub fn aligns_its_own(&self) -> bool {
        self.train.aligning().is_some() && self.train.alignment_file.is_none()
    }

    /// An error if training is to align sentences and there are none.
    pub fn check_alignment(&self) -> Result<()> {
        let none = "train.alignment-weight aligns the sentences of [parallel], and there are none: set parallel.file, or train.alignment-file";
        let has = self.examples.is_none() && self.parallel.file.is_some();
        ensure!(has || !self.aligns_its_own(), Error::setting("train.alignment-weight", none));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::{objective::Objective, train::Method};

    #[test]
    fn settings_of_no_alignment_are_refused_by_name_and_defaults_are_the_papers() {
        let usual = TrainSettings::default();
        assert_eq!(usual.aligning(), None);
        let weight = |w: f64| TrainSettings { alignment_weight: Some(w), ..usual.clone() };
        let on = weight(0.5).aligning().unwrap();
        assert_eq!(on, Aligning { weight: 0.5, layer: None, temperature: 0.1, batch: 32 });
        assert_eq!([1, 2, 7, 30, 32].map(|layers| on.layer_of(layers).unwrap()), [1, 1, 4, 15, 16]);
        assert!(
            Aligning { layer: Some(0), ..on }.layer_of(4).is_err()
                && Aligning { layer: Some(5), ..on }.layer_of(4).is_err()
        );
        assert!(weight(0.5).check().is_ok() && weight(0.0).check().is_ok());
        let full = TrainSettings { method: Method::Full, ..weight(1.0) };
        assert!(full.check().is_ok());
        for (settings, key) in [
            (TrainSettings { alignment_layer: Some(3), ..usual.clone() }, "train.alignment-layer"),
            (
                TrainSettings { alignment_temperature: Some(0.1), ..usual.clone() },
                "train.alignment-temperature",
            ),
            (TrainSettings { alignment_batch: Some(8), ..weight(0.0) }, "train.alignment-batch"),
            (TrainSettings { alignment_file: Some("x".into()), ..weight(0.0) }, "train.alignment-file"),
            (
                TrainSettings { alignment_target_file: Some("x".into()), ..weight(1.0) },
                "train.alignment-target-file",
            ),
            (TrainSettings { objective: Objective::Dpo, ..weight(1.0) }, "train.alignment-weight"),
            (TrainSettings { objective: Objective::OnPolicy, ..weight(1.0) }, "train.alignment-weight"),
            (TrainSettings { objective: Objective::TopK, ..weight(1.0) }, "train.alignment-weight"),
        ] {
            let error = settings.check().unwrap_err();
            let found = error.downcast_ref::<Error>();
            assert!(matches!(found, Some(Error::Setting { name, .. }) if name == key), "{key}: {error:#}");
        }
    }
}
