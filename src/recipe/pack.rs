//! Settings of `pack`.
use serde::{Deserialize, Serialize};

use crate::data::{tally::OnBadRow, template::TrainOn};

/// How examples become tokens.
#[derive(Clone, Debug, PartialEq, clap::Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct PackSettings {
    /// Chat template: auto (the model's own), auto:NAME (a named template of the model), alpaca, alpaca-llamafactory, llama2, chatml, seallm-v2,
    /// plain, or a .jinja file. A BOS token is added only if the template writes one, or if +bos is appended to the name
    #[arg(long, default_value = "auto")]
    pub template: String,
    /// System prompt
    #[arg(long)]
    pub system: Option<String>,
    /// Longest document in tokens; longer ones are dropped (and counted), or cut with --truncate
    #[arg(long, default_value_t = 512)]
    pub max_length: usize,
    /// Cut documents that are too long instead of dropping them
    #[arg(long)]
    pub truncate: bool,
    /// Which answers of a conversation to train on: all, or the last
    #[arg(long, value_enum, default_value = "all")]
    pub train_on: TrainOn,
    /// A row that cannot be read: fail, or skip it and count it
    #[arg(long, value_enum, default_value = "fail")]
    pub on_bad_row: OnBadRow,
    /// Train on the prompts too (for training from scratch)
    #[arg(long)]
    pub train_on_prompt: bool,
}

impl Default for PackSettings {
    fn default() -> PackSettings {
        PackSettings {
            template: "auto".into(),
            system: None,
            max_length: 512,
            truncate: false,
            train_on: TrainOn::All,
            on_bad_row: OnBadRow::Fail,
            train_on_prompt: false,
        }
    }
}
