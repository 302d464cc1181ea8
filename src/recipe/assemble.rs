//! Settings of `assemble`.
use serde::{Deserialize, Serialize};

use crate::mt::self_translate::TRANSLATION_PROMPT;

/// Which training set is made of the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// The method: the model's own answers, their translations, code-switched questions, parallel sentences
    Sdrrl,
    /// Ablation: the same pair types as `sdrrl` with the data set's own answers, and their translations, in place of the model's
    Gold,
    /// Baseline: source questions with the data set's answers
    Sft,
    /// Baseline: translated questions with the data set's answers, translated
    TranslateThenSft,
}

impl Variant {
    /// As it is written in recipes.
    pub fn name(self) -> &'static str {
        match self {
            Variant::Sdrrl => "sdrrl",
            Variant::Gold => "gold",
            Variant::Sft => "sft",
            Variant::TranslateThenSft => "translate-then-sft",
        }
    }
}

/// Question language > answer language; S is the source, T the target, CS the code-switched source question, CT the code-switched target question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[allow(missing_docs)]
pub enum PairType {
    #[serde(rename = "S>S")]
    #[value(name = "S>S")]
    SourceSource,
    #[serde(rename = "T>T")]
    #[value(name = "T>T")]
    TargetTarget,
    #[serde(rename = "S>T")]
    #[value(name = "S>T")]
    SourceTarget,
    #[serde(rename = "T>S")]
    #[value(name = "T>S")]
    TargetSource,
    #[serde(rename = "CS>S")]
    #[value(name = "CS>S")]
    SwitchedSource,
    #[serde(rename = "CS>T")]
    #[value(name = "CS>T")]
    SwitchedTarget,
    #[serde(rename = "CT>T")]
    #[value(name = "CT>T")]
    SwitchedTargetTarget,
    #[serde(rename = "CT>S")]
    #[value(name = "CT>S")]
    SwitchedTargetSource,
}

impl PairType {
    /// Every one.
    pub const ALL: [PairType; 8] = [
        PairType::SourceSource,
        PairType::TargetTarget,
        PairType::SourceTarget,
        PairType::TargetSource,
        PairType::SwitchedSource,
        PairType::SwitchedTarget,
        PairType::SwitchedTargetTarget,
        PairType::SwitchedTargetSource,
    ];

    /// As it is written in recipes and examples.
    pub fn name(self) -> &'static str {
        match self {
            PairType::SourceSource => "S>S",
            PairType::TargetTarget => "T>T",
            PairType::SourceTarget => "S>T",
            PairType::TargetSource => "T>S",
            PairType::SwitchedSource => "CS>S",
            PairType::SwitchedTarget => "CS>T",
            PairType::SwitchedTargetTarget => "CT>T",
            PairType::SwitchedTargetSource => "CT>S",
        }
    }
}

/// How rows become examples.
#[derive(Clone, Debug, PartialEq, clap::Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct AssembleSettings {
    /// Training set to make
    #[arg(long, value_enum, default_value = "sdrrl")]
    pub variant: Variant,
    /// Pair types of the variants `sdrrl` and `gold`
    #[arg(long, value_enum, value_delimiter = ',', default_value = "S>S,T>T,T>S,S>T,CS>S,CS>T")]
    pub pairs: Vec<PairType>,
    /// In cross-language pairs, ask for the answer's language ("Answer in Spanish.")
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    pub answer_in: bool,
    /// Share of source rows held out for the validation loss
    #[arg(long, default_value_t = 0.05)]
    pub validation: f64,
    /// Translation instructions, one drawn per row; {source} and {target} are replaced by the names of the languages, {text} by the sentence
    #[arg(long, default_values_t = translation_prompts())]
    pub translation_prompts: Vec<String>,
    /// Include the parallel sentences, if there are any
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    pub use_parallel: bool,
    /// Include them in the baselines (variants sft and translate-then-sft), too
    #[arg(long, default_value_t = false, action = clap::ArgAction::Set)]
    pub parallel_in_baselines: bool,
    /// Loss weight of parallel sentences
    #[arg(long, default_value_t = 1.0)]
    pub parallel_weight: f32,
    /// At most so many training examples of a pair type, or with answers in a language: S>S=500, es=2000. Which ones is drawn by the seed
    #[arg(long, value_delimiter = ',', value_name = "PAIR|LANGUAGE=NUMBER")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub caps: Vec<String>,
    /// Shares of pair types of `sdrrl` and `gold`, to which those with too many training examples are thinned: S>S=1, T>T=2. Types that are not named stay as they are, a share of 0
    /// leaves a type out
    #[arg(long, value_delimiter = ',', value_name = "PAIR=SHARE")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mix: Vec<String>,
    /// Seed of the split and of all random choices
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
}

fn translation_prompts() -> Vec<String> {
    let all = [
        TRANSLATION_PROMPT,
        "Translate the following {source} text to {target}.\n{text}",
        "{text}\n\nTranslate this text from {source} to {target}.",
        "How do you say this in {target}? {text}",
    ];
    all.iter().map(|s| s.to_string()).collect()
}

impl Default for AssembleSettings {
    fn default() -> AssembleSettings {
        use PairType::*;
        AssembleSettings {
            variant: Variant::Sdrrl,
            pairs: vec![
                SourceSource,
                TargetTarget,
                TargetSource,
                SourceTarget,
                SwitchedSource,
                SwitchedTarget,
            ],
            answer_in: true,
            validation: 0.05,
            translation_prompts: translation_prompts(),
            use_parallel: true,
            parallel_in_baselines: false,
            parallel_weight: 1.0,
            caps: vec![],
            mix: vec![],
            seed: 42,
        }
    }
}
