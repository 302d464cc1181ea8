//! Whole texts through a sentence translator: split, translate every sentence of a batch at once, put together.
use anyhow::{Result, ensure};

use super::Translator;
use crate::data::sentences::{Piece, join, split};

/// A whole text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TranslatedText {
    /// The translation.
    pub text: String,
    /// The hypothesis score of each sentence, where the engine has any.
    pub scores: Vec<f64>,
}

/// Translates texts of any length; white space, lists and code between sentences survive.
pub fn translate_texts(translator: &mut dyn Translator, texts: &[&str]) -> Result<Vec<TranslatedText>> {
    let pieces: Vec<Vec<Piece>> = texts.iter().map(|t| split(t)).collect();
    let sentences: Vec<String> = pieces
        .iter()
        .flatten()
        .filter_map(|p| if let Piece::Sentence(s) = p { Some(s.to_string()) } else { None })
        .collect();
    let translated = translator.translate(&sentences)?;
    ensure!(
        translated.len() == sentences.len(),
        "{} gave {} sentences for {}",
        translator.name(),
        translated.len(),
        sentences.len()
    );
    let (mut rest, mut scores) = (&translated[..], translator.scores());
    Ok(pieces
        .iter()
        .map(|p| {
            let n = p.iter().filter(|x| matches!(x, Piece::Sentence(_))).count();
            let (own, others) = rest.split_at(n);
            rest = others;
            let (own_scores, others) = scores.split_at(n.min(scores.len()));
            scores = others;
            TranslatedText { text: join(p, own), scores: own_scores.to_vec() }
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Upper;
    impl Translator for Upper {
        fn name(&self) -> String {
            "upper".into()
        }
        fn translate(&mut self, s: &[String]) -> Result<Vec<String>> {
            Ok(s.iter().map(|x| x.to_uppercase()).collect())
        }
    }

    struct Lossy;
    impl Translator for Lossy {
        fn name(&self) -> String {
            "lossy".into()
        }
        fn translate(&mut self, s: &[String]) -> Result<Vec<String>> {
            Ok(s[1..].to_vec())
        }
    }

    #[test]
    fn texts_come_back_in_order_with_their_layout() {
        let out = translate_texts(&mut Upper, &["- a b. C d.\n- e", "", "```x```", "f"]).unwrap();
        let out: Vec<String> = out.into_iter().map(|t| t.text).collect();
        assert_eq!(out, ["- A B. C D.\n- E", "", "```x```", "F"]);
        let error = translate_texts(&mut Lossy, &["One. Two."]).unwrap_err().to_string();
        assert!(error.contains("lossy gave 1 sentences for 2"), "{error}");
    }
}
