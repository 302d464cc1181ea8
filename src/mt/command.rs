//! Any program that maps lines to lines, such as Apertium, kept resident.
use anyhow::Result;

use super::Translator;
use crate::data::line_process::LineProcess;

/// A program that translates.
pub struct CommandTranslator {
    process: LineProcess,
    /// What the program puts before words that it does not know (Apertium: `*`); removed from translations.
    unknown_mark: Option<char>,
}

impl CommandTranslator {
    /// A translator over `process`.
    pub fn new(process: LineProcess, unknown_mark: Option<char>) -> CommandTranslator {
        CommandTranslator { process, unknown_mark }
    }
}

impl Translator for CommandTranslator {
    fn name(&self) -> String {
        format!("command {}", self.process.command())
    }

    fn translate(&mut self, sentences: &[String]) -> Result<Vec<String>> {
        let mut out = self.process.ask(sentences)?;
        if let Some(mark) = self.unknown_mark {
            out.iter_mut().for_each(|s| *s = without_marks(s, mark));
        }
        Ok(out)
    }

    fn finish(&mut self) -> Result<()> {
        self.process.finish()
    }
}

/// Without `mark` where it stands before a letter and not behind one.
fn without_marks(text: &str, mark: char) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let before_word = chars.peek().is_some_and(|n| n.is_alphanumeric());
        let after_word = out.chars().next_back().is_some_and(char::is_alphanumeric);
        if c != mark || !before_word || after_word {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_go_and_other_stars_stay() {
        assert_eq!(without_marks("el *floccinauci de 3*4 * x", '*'), "el floccinauci de 3*4 * x");
    }
}
