//! Translators, each behind one small trait: sentences in, sentences out.
pub mod command;
pub mod dictionary;
pub mod file;
pub mod nllb;
pub mod segment;
pub mod self_translate;

use anyhow::Result;

/// Translates sentences in one direction.
pub trait Translator {
    /// The engine and its settings, in words (kept with each translation).
    fn name(&self) -> String;

    /// The translation of each sentence, in order: exactly as many as there are sentences.
    fn translate(&mut self, sentences: &[String]) -> Result<Vec<String>>;

    /// The hypothesis scores of the sentences translated last, in order (higher is better); empty where the engine has none.
    fn scores(&self) -> &[f64] {
        &[]
    }

    /// After the last sentence: an error if only now it is seen that translations were not those of their sentences.
    fn finish(&mut self) -> Result<()> {
        Ok(())
    }
}
