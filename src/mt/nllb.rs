//! NLLB-200 (NLLB Team 2022) by this program's own M2M100.
//!
//! What its users meet is handled here: language codes are set by the engine, sentences longer than the model's positions are split, loops,
//! endless translations and wrong languages are searched again with more beams and without repeated n-grams.
use std::{cell::Cell, path::Path, rc::Rc};

use anyhow::{Context, Result, ensure};
use rayon::prelude::*;

use super::Translator;
use crate::{
    data::{
        alarms::{has_content, is_loop, translation_alarms},
        language_id,
        tokenizer::Tokenizer,
    },
    device::Device,
    models::m2m100::{BeamParams, GenerateOptions, M2m100, Request, Translated, generate},
    tensor::DType,
};

/// A loaded model, shared by the translators of all directions.
pub struct Nllb {
    model: M2m100,
    tokenizer: Tokenizer,
    name: String,
    /// `legacy_behaviour`: the source's language code stands behind its end token instead of before its text.
    legacy: bool,
    split: Cell<usize>,
    retried: Cell<usize>,
    improved: Cell<usize>,
}

/// Beams and n-gram rule of the second search of a suspicious sentence.
const RETRY_BEAMS: usize = 5;
const RETRY_NGRAM: usize = 3;

impl Nllb {
    /// Loads a Hugging Face directory of an M2M100 model with its tokenizer.
    pub fn load(dir: &Path, dtype: DType, device: &Device) -> Result<Rc<Nllb>> {
        let tokenizer = Tokenizer::load(dir)?;
        let model = M2m100::load(dir, dtype)?;
        let model = if *device == Device::Cpu { model } else { model.to_device(device)? };
        let (words, rows) = (tokenizer.vocab_size(), model.config.vocab_size);
        ensure!(
            words <= rows,
            "{}: the tokenizer has {words} tokens, the model {rows}: they do not belong together",
            dir.display()
        );
        let legacy = tokenizer.config()["legacy_behaviour"].as_bool().unwrap_or(false);
        let name = dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let [split, retried, improved] = [Cell::new(0), Cell::new(0), Cell::new(0)];
        Ok(Rc::new(Nllb { model, tokenizer, name, legacy, split, retried, improved }))
    }

    /// What happened so far, in words; empty if nothing did.
    pub fn report(&self) -> String {
        let mut parts = vec![];
        if self.split.get() > 0 {
            parts.push(format!("{} sentences longer than the model were split", self.split.get()));
        }
        if self.retried.get() > 0 {
            parts.push(format!("{} searched again, {} better then", self.retried.get(), self.improved.get()));
        }
        parts.join("; ")
    }

    /// The token of a language: any code or name of [`language_id`], or the model's own code (`ces_Latn`) for all of its languages.
    fn language(&self, name: &str) -> Result<u32> {
        let own = self.tokenizer.id(name).filter(|_| is_code(name));
        let known = || self.tokenizer.id(language_id::find(name)?.nllb);
        own.or_else(known).with_context(|| {
            format!("{} has no language `{name}`: give its code as NLLB writes it (ces_Latn), an ISO code or an English name", self.name)
        })
    }

    fn source_ids(&self, text: &str, language: u32) -> Result<Vec<u32>> {
        let mut ids = self.tokenizer.encode(text, false)?;
        let end = self.model.config.eos_token_id;
        if self.legacy {
            ids.extend([end, language]);
        } else {
            ids.insert(0, language);
            ids.push(end);
        }
        Ok(ids)
    }
}

/// `ces_Latn`: three small letters and a script.
fn is_code(name: &str) -> bool {
    name.len() == 8 && name.as_bytes()[3] == b'_' && name.bytes().take(3).all(|b| b.is_ascii_lowercase())
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

/// A part of a sentence that the model takes at once.
struct Piece {
    sentence: usize,
    text: String,
    ids: Vec<u32>,
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
        let (from, to) = (nllb.language(source)?, nllb.language(target)?);
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

    /// `text` in pieces that fit the model, cut at the white space nearest the middle.
    fn pieces(&self, sentence: usize, text: &str, out: &mut Vec<Piece>) -> Result<()> {
        let ids = self.nllb.source_ids(text, self.source)?;
        let most = self.nllb.model.config.max_position_embeddings;
        if ids.len() <= most {
            out.push(Piece { sentence, text: text.into(), ids });
            return Ok(());
        }
        let middle = text.len() / 2;
        let inner = |at: &usize| *at > 0 && *at < text.len();
        let spaces = text.char_indices().filter(|(_, c)| c.is_whitespace()).map(|(at, _)| at).filter(inner);
        let letters = || text.char_indices().map(|(at, _)| at).filter(inner);
        let near = |at: &usize| at.abs_diff(middle);
        let at = spaces.min_by_key(near).or_else(|| letters().min_by_key(near));
        let at =
            at.with_context(|| format!("one letter gives {} tokens; the model takes {most}", ids.len()))?;
        for part in [&text[..at], &text[at..]] {
            if !part.trim().is_empty() {
                self.pieces(sentence, part.trim(), out)?;
            }
        }
        Ok(())
    }

    fn search(&self, pieces: &[&Piece], params: &BeamParams) -> Result<Vec<(String, Translated)>> {
        let requests: Vec<Request> =
            pieces.iter().map(|p| Request { tokens: p.ids.clone(), forced_bos: Some(self.target) }).collect();
        let found = generate(&self.nllb.model, &requests, params, self.options, &mut |_| {})?;
        let tokenizer = &self.nllb.tokenizer;
        found
            .into_par_iter()
            .map(|t| {
                // The start token and the language code are no text.
                let text = tokenizer.decode(t.tokens.get(2..).unwrap_or_default())?;
                Ok((text.trim().to_string(), t))
            })
            .collect()
    }

    fn faults(&self, source: &str, (text, found): &(String, Translated)) -> usize {
        let alarms = translation_alarms(source, text, &self.languages.0, &self.languages.1);
        let serious = ["empty", "truncated", "loop", "wrong-language"];
        let named = alarms.iter().filter(|a| serious.contains(&a.as_str())).count();
        named + usize::from(!found.complete) + usize::from(is_loop(text) && !is_loop(source))
    }

    /// Searches suspicious translations again; the second is kept where it has fewer faults.
    fn retry(&self, pieces: &[Piece], found: &mut [(String, Translated)]) -> Result<()> {
        let faults: Vec<usize> =
            pieces.iter().zip(found.iter()).map(|(p, f)| self.faults(&p.text, f)).collect();
        let again: Vec<usize> = (0..pieces.len()).filter(|&i| faults[i] > 0).collect();
        if again.is_empty() {
            return Ok(());
        }
        let params = BeamParams {
            num_beams: RETRY_BEAMS.max(self.params.num_beams),
            no_repeat_ngram_size: RETRY_NGRAM,
            ..self.params.clone()
        };
        let suspicious: Vec<&Piece> = again.iter().map(|&i| &pieces[i]).collect();
        let nllb = &self.nllb;
        nllb.retried.set(nllb.retried.get() + again.len());
        for (i, second) in again.into_iter().zip(self.search(&suspicious, &params)?) {
            if self.faults(&pieces[i].text, &second) < faults[i] {
                found[i] = second;
                nllb.improved.set(nllb.improved.get() + 1);
            }
        }
        Ok(())
    }
}

impl Translator for NllbTranslator {
    fn name(&self) -> String {
        let p = &self.params;
        let ngrams = match p.no_repeat_ngram_size {
            0 => String::new(),
            n => format!(", no repeated {n}-grams"),
        };
        format!("nllb {}, beams {}, length penalty {}{ngrams}", self.nllb.name, p.num_beams, p.length_penalty)
    }

    fn translate(&mut self, sentences: &[String]) -> Result<Vec<String>> {
        let mut pieces = vec![];
        let mut out = sentences.to_vec();
        // Nothing to translate stays as it is: an empty line, a rule, a number of dashes.
        for (i, text) in sentences.iter().enumerate().filter(|(_, s)| has_content(s)) {
            let before = pieces.len();
            self.pieces(i, text.trim(), &mut pieces)?;
            self.nllb.split.set(self.nllb.split.get() + usize::from(pieces.len() > before + 1));
            out[i].clear();
        }
        let mut found = self.search(&pieces.iter().collect::<Vec<_>>(), &self.params)?;
        self.retry(&pieces, &mut found)?;
        let mut parts = vec![0usize; sentences.len()];
        self.scores = vec![0.0; sentences.len()];
        let space = if language_id::is_unspaced(&self.languages.1) { "" } else { " " };
        for (piece, (text, translated)) in pieces.iter().zip(&found) {
            let (i, joined) = (piece.sentence, &mut out[piece.sentence]);
            if parts[i] > 0 {
                joined.push_str(space);
            }
            joined.push_str(text);
            self.scores[i] += translated.score as f64;
            parts[i] += 1;
        }
        self.scores.iter_mut().zip(&parts).for_each(|(s, &n)| *s /= n.max(1) as f64);
        Ok(out)
    }

    fn scores(&self) -> &[f64] {
        &self.scores
    }
}
