//! A phrase table as translator: the longest entry at each word, left to right; what is not in the table stays as it is.
use anyhow::Result;

use super::Translator;
use crate::data::{
    dictionary::Dictionary,
    words::{capitalised, phrase, units, with_case_of},
};

/// Word-for-word translation. Knows no grammar: for closed worlds, tests, and languages with nothing better.
pub struct DictionaryTranslator {
    table: Dictionary,
    name: String,
    /// Into which it translates: its rules of capitals.
    target: String,
}

impl DictionaryTranslator {
    /// A translator over `table` into the language `target`; `name` says which.
    pub fn new(table: Dictionary, name: &str, target: &str) -> DictionaryTranslator {
        DictionaryTranslator { table, name: name.into(), target: target.into() }
    }

    fn sentence(&self, text: &str) -> String {
        let tokens = units(text, &|word| !self.table.lookup(word).is_empty());
        let mut out = String::new();
        let mut at = 0;
        while let Some(token) = tokens.get(at) {
            let found = if token.is_word { self.table.longest_match(&phrase(&tokens[at..])) } else { None };
            match found {
                Some((n, equivalents)) => {
                    out.push_str(&with_case_of(token.text, &equivalents[0], &self.target));
                    // n words with single spaces between them.
                    at += 2 * n - 1;
                }
                None => {
                    out.push_str(token.text);
                    at += 1;
                }
            }
        }
        // The phrase table may turn words around; the sentence still begins with a capital.
        if text.chars().next().is_some_and(char::is_uppercase) {
            capitalised(&out, &self.target)
        } else {
            out
        }
    }
}

impl Translator for DictionaryTranslator {
    fn name(&self) -> String {
        format!("dictionary {}", self.name)
    }

    fn translate(&mut self, sentences: &[String]) -> Result<Vec<String>> {
        Ok(sentences.iter().map(|s| self.sentence(s)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translator() -> DictionaryTranslator {
        let mut d = Dictionary::default();
        for (a, b) in
            [("what is", "¿cuál es"), ("the house", "la casa"), ("the", "el"), ("of", "de"), ("red", "rojo")]
        {
            d.insert(a, b);
        }
        DictionaryTranslator::new(d, "test", "es")
    }

    #[test]
    fn the_longest_phrase_wins_and_unknown_words_stay() {
        let t = translator();
        assert_eq!(t.sentence("What is the house of Ada?"), "¿Cuál es la casa de Ada?");
        assert_eq!(t.sentence("The red, the house."), "El rojo, la casa.");
        assert_eq!(t.sentence("The qux."), "El qux.");
        assert_eq!(t.sentence("the. House"), "el. House", "no phrase reaches over a full stop");
        assert_eq!(t.sentence(""), "");
    }

    #[test]
    fn a_table_that_knows_nothing_changes_nothing() {
        let t = DictionaryTranslator::new(Dictionary::default(), "empty", "xx");
        for text in ["¡Hola!  Two  spaces\t…", "x", "a-b c's"] {
            assert_eq!(t.sentence(text).to_lowercase(), text.to_lowercase());
        }
    }
}
