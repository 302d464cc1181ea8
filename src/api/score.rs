//! Reference-free scores of translations.
use crate::{
    device::DeviceChoice, error::Result, pipeline::placement::Placement, qe::Scorer,
    recipe::score::ScoreSettings, stages::score::open_scorer, tensor::DType,
};

/// Which scorer to use, and on which device.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoreOptions {
    /// The engine and its files or model, as in the section `score` of a recipe.
    pub settings: ScoreSettings,
    /// Language of the sources; replaces `{source}` in file names and commands.
    pub source_language: String,
    /// Language of the translations; replaces `{target}`.
    pub target_language: String,
    /// Data type of the scoring model's weights, if it has one.
    pub dtype: DType,
    /// The device that such a model runs on.
    pub device: DeviceChoice,
}

impl Default for ScoreOptions {
    /// The built-in engine (which needs `settings.file`), English to Spanish, F32 on the CPU.
    fn default() -> ScoreOptions {
        ScoreOptions {
            settings: ScoreSettings::default(),
            source_language: "en".into(),
            target_language: "es".into(),
            dtype: DType::F32,
            device: DeviceChoice::Cpu,
        }
    }
}

/// A scorer of translations: CometKiwi, a sentence encoder, a dictionary, another program, a file of scores, or a model behind an endpoint as a judge (NaN where
/// its answer holds no number).
///
/// ```
/// use sdrrl::{ScoreOptions, ScoreSettings, TranslationScorer};
/// let file = Some("assets/quickstart/world/words.{source}-{target}.txt".into());
/// let options = ScoreOptions { settings: ScoreSettings { file, ..Default::default() }, ..Default::default() };
/// let scores = TranslationScorer::load(&options)?.score(&[("the red house", "la casa roja"), ("the red house", "the red house")])?;
/// assert!(scores[0] > scores[1]);
/// # Ok::<(), sdrrl::Error>(())
/// ```
pub struct TranslationScorer {
    scorer: Box<dyn Scorer>,
}

impl TranslationScorer {
    /// Loads the engine with its files or model.
    ///
    /// # Errors
    /// [`NotFound`](crate::Error::NotFound), [`Setting`](crate::Error::Setting) (a setting that the engine needs is missing),
    /// [`Unsupported`](crate::Error::Unsupported), [`BadInput`](crate::Error::BadInput), [`NoDevice`](crate::Error::NoDevice).
    pub fn load(options: &ScoreOptions) -> Result<TranslationScorer> {
        let placement = Placement { dtype: options.dtype, device: options.device, ..Placement::default() };
        let (source, target) = (&options.source_language, &options.target_language);
        Ok(TranslationScorer { scorer: open_scorer(&options.settings, placement, source, target)? })
    }

    /// The score of each (source, translation) pair, in order; higher is better.
    ///
    /// # Errors
    /// A pair that is not in the file of scores, a program that fails, a model whose score is not finite.
    pub fn score<S: AsRef<str>>(&mut self, pairs: &[(S, S)]) -> Result<Vec<f64>> {
        let owned = |(a, b): &(S, S)| (a.as_ref().to_string(), b.as_ref().to_string());
        let pairs: Vec<(String, String)> = pairs.iter().map(owned).collect();
        Ok(self.scorer.score(&pairs)?)
    }

    /// Describes the scorer and its settings.
    pub fn name(&self) -> String {
        self.scorer.name()
    }
}
