//! The language model as its own translator. Generation is the caller's: this says what to ask and what to keep of the reply.
use anyhow::Result;

use super::Translator;
use crate::data::{languages, placeholders::filled};

/// Asks questions, gets answers: `infer`'s part, handed in.
pub type AskModel<'a> = Box<dyn FnMut(&[String]) -> Result<Vec<String>> + 'a>;

/// A translator that asks a language model.
pub struct SelfTranslator<'a> {
    ask: AskModel<'a>,
    model: String,
    prompt: String,
    source: String,
    target: String,
}

impl<'a> SelfTranslator<'a> {
    /// From `source` to `target` (language codes) by asking `ask` by `prompt`; `model` names who answers.
    pub fn new(
        ask: AskModel<'a>,
        model: &str,
        prompt: &str,
        source: &str,
        target: &str,
    ) -> SelfTranslator<'a> {
        let [model, prompt, source, target] = [model, prompt, source, target].map(String::from);
        SelfTranslator { ask, model, prompt, source, target }
    }
}

/// What a model is asked in order to translate, unless a recipe says otherwise.
pub const TRANSLATION_PROMPT: &str = "Translate from {source} to {target}: {text}";

/// `prompt` with the names of the languages `from` and `to`, and the text.
pub fn translation_prompt(prompt: &str, from: &str, to: &str, text: &str) -> String {
    filled(prompt, &|name| match name {
        "source" => Some(languages::name(from).to_string()),
        "target" => Some(languages::name(to).to_string()),
        "text" => Some(text.to_string()),
        _ => None,
    })
}

impl Translator for SelfTranslator<'_> {
    fn name(&self) -> String {
        format!("self {}", self.model)
    }

    fn translate(&mut self, sentences: &[String]) -> Result<Vec<String>> {
        let prompts: Vec<String> = sentences
            .iter()
            .map(|s| translation_prompt(&self.prompt, &self.source, &self.target, s))
            .collect();
        let answers = (self.ask)(&prompts)?;
        Ok(sentences.iter().zip(answers).map(|(s, a)| first_line(s, &a)).collect())
    }
}

/// The first line of the reply, without quotes that the source does not have.
pub fn first_line(source: &str, reply: &str) -> String {
    let line = reply.trim().lines().next().unwrap_or_default().trim();
    let quoted = |s: &str, q: char| s.len() > 1 && s.starts_with(q) && s.ends_with(q);
    match line.strip_prefix('"').and_then(|l| l.strip_suffix('"')) {
        Some(inner) if !quoted(source, '"') => inner.trim().into(),
        _ => line.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_name_the_languages_and_replies_are_cleaned() {
        let mut asked = vec![];
        let ask: AskModel = Box::new(|prompts| {
            asked = prompts.to_vec();
            Ok(vec!["\"Hola.\"\nThis means hello.".into(), "".into()])
        });
        let mut t = SelfTranslator::new(ask, "m", TRANSLATION_PROMPT, "en", "es");
        assert_eq!(t.translate(&["Hello.".into(), "x".into()]).unwrap(), ["Hola.", ""]);
        drop(t);
        assert_eq!(asked[0], "Translate from English to Spanish: Hello.");
    }
}
