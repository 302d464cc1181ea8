//! Translations made elsewhere: JSONL rows with the id of their source row.
use std::{collections::HashMap, path::Path};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::data::row_shard::RowSet;

/// One translated row. Sides that are absent count as untranslated.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct TranslatedRow {
    /// The source row's.
    pub id: String,
    /// The question.
    pub instruction: String,
    /// Its context.
    #[serde(default)]
    pub input: String,
    /// The model's own answer.
    #[serde(default)]
    pub answer: String,
    /// The data set's answer.
    #[serde(default)]
    pub output: String,
}

/// Rows by id.
pub struct FileTranslator {
    name: String,
    rows: HashMap<String, TranslatedRow>,
}

impl FileTranslator {
    /// Reads a JSONL file or a folder of row shards.
    pub fn load(path: &Path) -> Result<FileTranslator> {
        let set = RowSet::open(path)?;
        let mut rows = HashMap::with_capacity(set.len());
        for row in set.iter() {
            let row: TranslatedRow = row?;
            if let Some(old) = rows.insert(row.id.clone(), row) {
                bail!("{}: the id `{}` occurs twice", path.display(), old.id);
            }
        }
        Ok(FileTranslator { name: format!("file {}", path.display()), rows })
    }

    /// The file, in words.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The translation of the row `id`.
    pub fn get(&self, id: &str) -> Result<&TranslatedRow> {
        self.rows.get(id).with_context(|| format!("{} has no row with id `{id}`", self.name))
    }
}
