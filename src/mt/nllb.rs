//! NLLB-200 (NLLB Team 2022) by this program's own M2M100.
//!
//! What its users meet is handled here: language codes are set by the engine, sentences longer than the model's positions are split, loops,
//! endless translations and wrong languages are searched again with more beams and without repeated n-grams.
use std::{cell::Cell, fmt, iter::Sum, path::Path, rc::Rc, sync::Arc};

use anyhow::{Context, Result, ensure};
use rayon::prelude::*;

use super::Translator;
use crate::{
    data::{
        alarms::{has_content, is_loop, translation_alarms},
        languages,
        tokenizer::Tokenizer,
        words::nearest,
    },
    device::Device,
    models::m2m100::{
        BeamParams, GenerateOptions, M2m100, M2m100Config, Translated, TranslationRequest, generate,
    },
    tensor::DType,
};

/// What of an engine works on text alone: tokenizer and languages. It may be at work on another thread while the model computes.
pub struct NllbText {
    tokenizer: Tokenizer,
    name: String,
    /// Tokens that the model takes at once.
    longest: usize,
    eos: u32,
    /// `legacy_behaviour`: the source's language code stands behind its end token instead of before its text.
    legacy: bool,
}

/// A part of a sentence that the model takes at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SentencePart {
    text: String,
    ids: Vec<u32>,
}

/// A loaded model, shared by the translators of all directions.
pub struct Nllb {
    text: Arc<NllbText>,
    model: M2m100,
    happened: Cell<Happened>,
}

/// What became of sentences that were not simply searched once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Happened {
    /// Longer than the model's positions.
    pub split: usize,
    /// Suspicious, and searched again.
    pub retried: usize,
    /// Of those, the ones with fewer faults then.
    pub improved: usize,
}

impl Sum for Happened {
    fn sum<I: Iterator<Item = Happened>>(all: I) -> Happened {
        all.fold(Happened::default(), |a, b| Happened {
            split: a.split + b.split,
            retried: a.retried + b.retried,
            improved: a.improved + b.improved,
        })
    }
}

impl fmt::Display for Happened {
    /// In words; empty if nothing happened.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Happened { split, retried, improved } = *self;
        let mut parts = vec![];
        if split > 0 {
            parts.push(format!("{split} sentences longer than the model were split"));
        }
        if retried > 0 {
            parts.push(format!("{retried} searched again, {improved} better then"));
        }
        write!(f, "{}", parts.join("; "))
    }
}

/// Beams and n-gram rule of the second search of a suspicious sentence.
const RETRY_BEAMS: usize = 5;
const RETRY_NGRAM: usize = 3;

impl NllbText {
    /// Reads the tokenizer and the config.json of a Hugging Face directory of an M2M100 model.
    pub fn load(dir: &Path) -> Result<NllbText> {
        let config = M2m100Config::from_dir(dir)?;
        let tokenizer = Tokenizer::load(dir)?;
        let (words, rows) = (tokenizer.vocab_size(), config.vocab_size);
        ensure!(
            words <= rows,
            "{}: the tokenizer has {words} tokens, the model {rows}: they do not belong together",
            dir.display()
        );
        let legacy = tokenizer.config()["legacy_behaviour"].as_bool().unwrap_or(false);
        let name = dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let (longest, eos) = (config.max_position_embeddings, config.eos_token_id);
        Ok(NllbText { tokenizer, name, longest, eos, legacy })
    }

    /// The token of a language: any code or name of [`languages`], or the model's own code (`quy_Latn`) for all of its languages.
    pub fn language(&self, name: &str) -> Result<u32> {
        let own = self.tokenizer.id(name).filter(|_| languages::is_nllb_code(name));
        let known = || {
            let code =
                languages::find(name).map(|l| l.nllb.to_string()).or_else(|| languages::code(name).ok());
            code.and_then(|code| self.tokenizer.id(&code))
        };
        own.or_else(known).with_context(|| {
            let codes = (0..self.tokenizer.vocab_size() as u32).map(|id| self.tokenizer.token_text(id));
            let codes: Vec<String> = codes.filter(|t| languages::is_nllb_code(t)).collect();
            let near = nearest(name, codes.iter().map(String::as_str));
            format!(
                "{} has no language `{name}`{}: give its code as NLLB writes it (ces_Latn), an ISO code or an English name",
                self.name,
                near.map_or(String::new(), |n| format!(" (did you mean `{n}`?)"))
            )
        })
    }

    /// `sentence` in the language with the token `language`, in pieces that fit the model, cut at the white space nearest the middle. None
    /// if there is nothing to translate: an empty line, a rule, a number of dashes.
    pub fn pieces(&self, sentence: &str, language: u32) -> Result<Vec<SentencePart>> {
        let mut out = vec![];
        if has_content(sentence) {
            self.cut(sentence.trim(), language, &mut out)?;
        }
        Ok(out)
    }

    fn cut(&self, text: &str, language: u32, out: &mut Vec<SentencePart>) -> Result<()> {
        let ids = self.source_ids(text, language)?;
        if ids.len() <= self.longest {
            out.push(SentencePart { text: text.into(), ids });
            return Ok(());
        }
        let middle = text.len() / 2;
        let inner = |at: &usize| *at > 0 && *at < text.len();
        let spaces = text.char_indices().filter(|(_, c)| c.is_whitespace()).map(|(at, _)| at).filter(inner);
        let letters = || text.char_indices().map(|(at, _)| at).filter(inner);
        let near = |at: &usize| at.abs_diff(middle);
        let at = spaces.min_by_key(near).or_else(|| letters().min_by_key(near));
        let at = at.with_context(|| {
            format!("one letter gives {} tokens; the model takes {}", ids.len(), self.longest)
        })?;
        for part in [&text[..at], &text[at..]] {
            if !part.trim().is_empty() {
                self.cut(part.trim(), language, out)?;
            }
        }
        Ok(())
    }

    fn source_ids(&self, text: &str, language: u32) -> Result<Vec<u32>> {
        let mut ids = self.tokenizer.encode(text, false)?;
        if self.legacy {
            ids.extend([self.eos, language]);
        } else {
            ids.insert(0, language);
            ids.push(self.eos);
        }
        Ok(ids)
    }
}

impl Nllb {
    /// Loads a Hugging Face directory of an M2M100 model with its tokenizer.
    pub fn load(dir: &Path, dtype: DType, device: &Device) -> Result<Rc<Nllb>> {
        Nllb::with_text(dir, Arc::new(NllbText::load(dir)?), dtype, device)
    }

    /// As [`Nllb::load`], where the directory's texts' part is loaded already.
    pub fn with_text(dir: &Path, text: Arc<NllbText>, dtype: DType, device: &Device) -> Result<Rc<Nllb>> {
        let model = M2m100::load(dir, dtype)?;
        let model = if *device == Device::Cpu { model } else { model.to_device(device)? };
        Ok(Rc::new(Nllb { text, model, happened: Cell::default() }))
    }

    /// What happened so far.
    pub fn happened(&self) -> Happened {
        self.happened.get()
    }

    fn count(&self, more: Happened) {
        self.happened.set([self.happened.get(), more].into_iter().sum());
    }
}

/// One direction.
pub struct NllbTranslator {
    nllb: Rc<Nllb>,
    languages: (String, String),
    source: u32,
    target: u32,
    params: BeamParams,
    options: GenerateOptions,
    scores: Vec<f64>,
}

impl NllbTranslator {
    /// From `source` to `target`; errors for languages that the model does not have.
    pub fn new(
        nllb: &Rc<Nllb>,
        source: &str,
        target: &str,
        params: BeamParams,
        options: GenerateOptions,
    ) -> Result<NllbTranslator> {
        params.check(&nllb.model.config)?;
        let (from, to) = (nllb.text.language(source)?, nllb.text.language(target)?);
        let languages = (source.to_string(), target.to_string());
        Ok(NllbTranslator {
            nllb: nllb.clone(),
            languages,
            source: from,
            target: to,
            params,
            options,
            scores: vec![],
        })
    }

    /// As `translate`, where the pieces of each sentence are made already ([`NllbText::pieces`] in the source language).
    pub fn translate_pieces(
        &mut self,
        sentences: &[String],
        pieces: &[Vec<SentencePart>],
    ) -> Result<Vec<String>> {
        ensure!(sentences.len() == pieces.len(), "{} sentences, {} in pieces", sentences.len(), pieces.len());
        let split = pieces.iter().filter(|p| p.len() > 1).count();
        self.nllb.count(Happened { split, ..Happened::default() });
        let all: Vec<&SentencePart> = pieces.iter().flatten().collect();
        let mut found = self.search(&all, &self.params)?;
        self.retry(&all, &mut found)?;
        let (mut found, mut out) = (found.into_iter(), Vec::with_capacity(sentences.len()));
        let space = if languages::is_unspaced(&self.languages.1) { "" } else { " " };
        self.scores.clear();
        for (sentence, pieces) in sentences.iter().zip(pieces) {
            let own: Vec<(String, Translated)> = found.by_ref().take(pieces.len()).collect();
            let sum: f64 = own.iter().map(|(_, t)| t.score as f64).sum();
            self.scores.push(sum / own.len().max(1) as f64);
            let texts: Vec<String> = own.into_iter().map(|(text, _)| text).collect();
            // Nothing to translate stays as it is.
            out.push(if pieces.is_empty() { sentence.clone() } else { texts.join(space) });
        }
        Ok(out)
    }

    fn search(&self, pieces: &[&SentencePart], params: &BeamParams) -> Result<Vec<(String, Translated)>> {
        let requests: Vec<TranslationRequest> = pieces
            .iter()
            .map(|p| TranslationRequest { tokens: p.ids.clone(), forced_bos: Some(self.target) })
            .collect();
        let found = generate(&self.nllb.model, &requests, params, self.options, &mut |_| {})?;
        let tokenizer = &self.nllb.text.tokenizer;
        found
            .into_par_iter()
            .map(|t| {
                // The start token and the language code are no text.
                let text = tokenizer.decode(t.tokens.get(2..).unwrap_or_default())?;
                Ok((text.trim().to_string(), t))
            })
            .collect()
    }

    /// Searches suspicious translations again; the second is kept where it has fewer faults.
    fn retry(&self, pieces: &[&SentencePart], found: &mut [(String, Translated)]) -> Result<()> {
        let languages = (self.languages.0.as_str(), self.languages.1.as_str());
        let faults: Vec<usize> =
            pieces.par_iter().zip(&*found).map(|(p, f)| faults_of(&p.text, f, languages)).collect();
        let again: Vec<usize> = (0..pieces.len()).filter(|&i| faults[i] > 0).collect();
        if again.is_empty() {
            return Ok(());
        }
        let params = BeamParams {
            num_beams: RETRY_BEAMS.max(self.params.num_beams),
            no_repeat_ngram_size: RETRY_NGRAM,
            ..self.params.clone()
        };
        let suspicious: Vec<&SentencePart> = again.iter().map(|&i| pieces[i]).collect();
        let mut happened = Happened { retried: again.len(), ..Happened::default() };
        for (i, second) in again.into_iter().zip(self.search(&suspicious, &params)?) {
            if faults_of(&pieces[i].text, &second, languages) < faults[i] {
                found[i] = second;
                happened.improved += 1;
            }
        }
        self.nllb.count(happened);
        Ok(())
    }
}

/// How many things are wrong with a translation.
fn faults_of(source: &str, (text, found): &(String, Translated), (from, to): (&str, &str)) -> usize {
    let alarms = translation_alarms(source, text, from, to);
    let serious = ["empty", "truncated", "loop", "wrong-language"];
    let named = alarms.iter().filter(|a| serious.contains(&a.as_str())).count();
    named + usize::from(!found.complete) + usize::from(is_loop(text) && !is_loop(source))
}

impl Translator for NllbTranslator {
    fn name(&self) -> String {
        let p = &self.params;
        let ngrams = match p.no_repeat_ngram_size {
            0 => String::new(),
            n => format!(", no repeated {n}-grams"),
        };
        let name = &self.nllb.text.name;
        format!("nllb {name}, beams {}, length penalty {}{ngrams}", p.num_beams, p.length_penalty)
    }

    fn translate(&mut self, sentences: &[String]) -> Result<Vec<String>> {
        let (text, source) = (&*self.nllb.text, self.source);
        let pieces = sentences.par_iter().map(|s| text.pieces(s, source)).collect::<Result<Vec<_>>>()?;
        self.translate_pieces(sentences, &pieces)
    }

    fn scores(&self) -> &[f64] {
        &self.scores
    }
}
