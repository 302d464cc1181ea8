//! Whole texts and a translator of sentences: what to give it, and its sentences put together again.
use anyhow::{Result, ensure};

use crate::data::sentences::{TextPiece, join, sentences, split};

/// A whole text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TranslatedText {
    /// The translation.
    pub text: String,
    /// The hypothesis score of each sentence, where the engine has any.
    pub scores: Vec<f64>,
}

/// The sentences of texts of any length in `language`, one after another.
pub fn sentences_of(texts: &[&str], language: &str) -> Vec<String> {
    texts.iter().flat_map(|text| sentences(text, language)).map(String::from).collect()
}

/// The texts, in `language`, with what `engine` made of their [`sentences_of`]; white space, lists and code between them survive. `scores` are those of the
/// sentences, or none.
pub fn put_together(
    texts: &[&str],
    language: &str,
    engine: &str,
    translated: &[String],
    scores: &[f64],
) -> Result<Vec<TranslatedText>> {
    let pieces: Vec<Vec<TextPiece>> = texts.iter().map(|t| split(t, language)).collect();
    let count = |p: &[TextPiece]| p.iter().filter(|x| matches!(x, TextPiece::Sentence(_))).count();
    let expected: usize = pieces.iter().map(|p| count(p)).sum();
    ensure!(translated.len() == expected, "{engine} gave {} sentences for {expected}", translated.len());
    let (mut rest, mut scores) = (translated, scores);
    let one = |p: &Vec<TextPiece>| {
        let n = count(p);
        let (own, others) = rest.split_at(n);
        rest = others;
        let (own_scores, others) = scores.split_at(n.min(scores.len()));
        scores = others;
        TranslatedText { text: join(p, own), scores: own_scores.to_vec() }
    };
    Ok(pieces.iter().map(one).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_come_back_in_order_with_their_layout() {
        let texts = ["- a b. C d.\n- E", "", "```x```", "f"];
        let sentences = sentences_of(&texts, "en");
        assert_eq!(sentences, ["a b.", "C d.", "E", "f"]);
        let upper: Vec<String> = sentences.iter().map(|s| s.to_uppercase()).collect();
        let out = put_together(&texts, "en", "upper", &upper, &[0.5, 1.0, 2.0, 3.0]).unwrap();
        let (texts_out, scores): (Vec<String>, Vec<Vec<f64>>) =
            out.into_iter().map(|t| (t.text, t.scores)).unzip();
        assert_eq!(texts_out, ["- A B. C D.\n- E", "", "```x```", "F"]);
        assert_eq!(scores, [vec![0.5, 1.0, 2.0], vec![], vec![], vec![3.0]]);
        let error = put_together(&["One. Two."], "en", "lossy", &upper[..1], &[]).unwrap_err().to_string();
        assert!(error.contains("lossy gave 1 sentences for 2"), "{error}");
    }
}
