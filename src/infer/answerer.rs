//! A model with everything that turns questions into answers.
use std::{path::Path, sync::Arc};

use crate::error::{Error, Kind};
use anyhow::{Context, Result, ensure};

use super::{
    engine::{Engine, EngineOptions, Finish, Request, StopTest},
    generation_config::GenerationConfig,
    sampler::SamplingParams,
    session::{Room, Session},
};
use crate::{
    data::{conversation::Prompt, template::ChatTemplate, tokenizer::Tokenizer},
    models::{
        transformer::{config::Config, lora::Lora, weights::Transformer},
        weights::{WeightSource, resolve},
    },
    pipeline::placement::Placement,
};

/// How questions are answered. What is `None` is taken from the model's generation_config.json, and failing that from
/// [`SamplingParams::default`].
#[derive(Clone, Debug, PartialEq)]
pub struct AnswerOptions {
    /// System prompt.
    pub system: Option<String>,
    /// New tokens at most; else the model's `max_new_tokens`, its `max_length` with the prompt, or 256.
    pub max_new_tokens: Option<usize>,
    /// End tokens are not chosen before this many.
    pub min_new_tokens: Option<usize>,
    /// 0 is greedy.
    pub temperature: Option<f32>,
    /// Sample among the k likeliest tokens; 0: all.
    pub top_k: Option<usize>,
    /// Sample among the likeliest tokens that reach this probability together, 0..1.
    pub top_p: Option<f32>,
    /// Sample among tokens that are at least this fraction as likely as the likeliest, 0..1.
    pub min_p: Option<f32>,
    /// Above 1, tokens that occurred before become less likely.
    pub repetition_penalty: Option<f32>,
    /// A reply ends behind any of these, too.
    pub stop_strings: Vec<String>,
    /// No n-gram of this length may occur twice; 0: off.
    pub no_repeat_ngram_size: Option<usize>,
    /// What runs together; no greedy answer depends on it.
    pub batch: EngineOptions,
    /// Of every draw.
    pub seed: u64,
}

impl Default for AnswerOptions {
    /// Everything as the model's generation_config.json has it.
    fn default() -> AnswerOptions {
        AnswerOptions {
            system: None,
            max_new_tokens: None,
            min_new_tokens: None,
            temperature: None,
            top_k: None,
            top_p: None,
            min_p: None,
            repetition_penalty: None,
            stop_strings: vec![],
            no_repeat_ngram_size: None,
            batch: EngineOptions::default(),
            seed: 42,
        }
    }
}

/// A model with everything that turns questions into answers.
pub struct Answerer {
    /// The model, with its adapter merged.
    pub model: Transformer,
    /// Its tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// How prompts are rendered.
    pub template: Arc<ChatTemplate>,
    /// Its generation_config.json.
    pub generation: GenerationConfig,
}

impl Answerer {
    /// Loads a model by path or name, merges the adapter if any. `template` is a name such as `auto`, or a .jinja file.
    ///
    /// # Errors
    /// A model, tokenizer, template or adapter that is missing, damaged, or does not belong to the others.
    pub fn load(
        model: &str,
        adapter: Option<&Path>,
        placement: Placement,
        template: &str,
    ) -> Result<Answerer> {
        let path = resolve(model)?;
        if !path.exists() {
            // Which says what a model may be.
            WeightSource::open(&path)?;
        }
        let tokenizer = Tokenizer::load(&path).or_kind(|m| Error::bad_input(path.display(), m))?;
        let template = ChatTemplate::load(template, &tokenizer);
        let template = template.or_kind(|m| Error::bad_input(path.display(), m))?;
        let mut model = Transformer::load_for(&path, placement)?;
        if let Some(dir) = adapter {
            let lora = Lora::load(dir, &model).or_kind(|m| Error::bad_input(dir.display(), m))?;
            model.apply_adapter(&lora)?;
        }
        let generation = GenerationConfig::from_model(&path)?;
        Ok(Answerer {
            model: model.place(placement.device)?,
            tokenizer: tokenizer.into(),
            template: template.into(),
            generation,
        })
    }

    /// The options with what they leave open taken from generation_config.json.
    pub fn sampling(&self, s: &AnswerOptions) -> SamplingParams {
        let g = &self.generation;
        let default = SamplingParams::default();
        let eos = end_tokens(&self.tokenizer, &self.model.config);
        SamplingParams {
            max_new_tokens: s.max_new_tokens.or(g.max_new_tokens).unwrap_or(default.max_new_tokens),
            max_length: g.max_length.filter(|_| s.max_new_tokens.or(g.max_new_tokens).is_none()),
            min_new_tokens: s.min_new_tokens.or(g.min_new_tokens).unwrap_or(0),
            temperature: s.temperature.or(g.temperature).unwrap_or(default.temperature),
            top_k: s.top_k.or(g.top_k).unwrap_or(default.top_k),
            top_p: s.top_p.or(g.top_p).unwrap_or(default.top_p),
            min_p: s.min_p.or(g.min_p).unwrap_or(default.min_p),
            repetition_penalty: s
                .repetition_penalty
                .or(g.repetition_penalty)
                .unwrap_or(default.repetition_penalty),
            no_repeat_ngram_size: s.no_repeat_ngram_size.or(g.no_repeat_ngram_size).unwrap_or(0),
            eos,
            rules: g.rules.clone(),
            seed: s.seed,
        }
    }

    /// Refuses what the model's generation settings ask for and nobody here does, as far as the options leave it open.
    pub fn check_settings(&self, options: &AnswerOptions) -> Result<()> {
        self.generation.refuse_unsupported(self.sampling(options).temperature)
    }

    /// Whether the model can take a prompt.
    ///
    /// # Errors
    /// A prompt that the template refuses, or that fills the model's context.
    pub fn check(&self, prompt: &Prompt, options: &AnswerOptions) -> Result<()> {
        let prompt = Prompt { system: prompt.system.or(options.system.as_deref()), ..*prompt };
        let tokens = self.template.encode_prompt(&self.tokenizer, &prompt)?.len();
        let context = self.model.config.max_position_embeddings;
        ensure!(tokens > 0, Error::bad_input("prompt", "the prompt is empty"));
        let long = || format!("the prompt has {tokens} tokens, the model takes {context}: shorten it");
        ensure!(tokens < context, Error::bad_input("prompt", long()));
        Ok(())
    }

    /// A session in which up to `rows` prompts run together, each with its reply within `longest` tokens (the model's context, if that is shorter).
    ///
    /// # Errors
    /// Too little memory; generation settings of the model that nobody here computes.
    pub fn session(&self, rows: usize, longest: usize) -> Result<Session<'_>> {
        let longest = longest.min(self.model.config.max_position_embeddings);
        let prompt_tokens = longest.max(rows);
        let room = Room { rows, slots: rows * longest, longest, prompt_tokens, listed: 1 };
        let stops = &self.generation.rules.stop_strings;
        let ends = |seen: &[u32]| ends_with_any(&self.tokenizer, seen, stops);
        let stop = if stops.is_empty() { None } else { Some(Box::new(ends) as Box<StopTest>) };
        Session::new(&self.model, room, stop)
    }

    /// Answers (id, prompt), in order. A prompt without a system prompt of its own gets that of the options. `on_done` is told of each.
    ///
    /// # Errors
    /// A prompt that the template refuses, or that is longer than the model's context, by its id; a failing device.
    pub fn answer(
        &self,
        questions: &[(&str, Prompt)],
        options: &AnswerOptions,
        on_done: &mut dyn FnMut(usize),
    ) -> Result<Vec<Reply>> {
        self.check_settings(options)?;
        let mut requests = vec![];
        for (id, prompt) in questions {
            let prompt = Prompt { system: prompt.system.or(options.system.as_deref()), ..*prompt };
            let tokens =
                self.template.encode_prompt(&self.tokenizer, &prompt).with_context(|| format!("row {id}"))?;
            requests.push(Request { id: id.to_string(), tokens });
        }
        let params = self.sampling(options);
        let texts = [&params.rules.stop_strings[..], &options.stop_strings].concat();
        let ends = |seen: &[u32]| ends_with_any(&self.tokenizer, seen, &texts);
        let stop: Option<&StopTest> = if texts.is_empty() { None } else { Some(&ends) };
        let mut engine = Engine::new(&self.model, options.batch)?.stopping(stop);
        let done = engine.generate(&requests, &params, &mut |_, _| on_done(1))?;
        done.into_iter()
            .map(|g| {
                let text = self.tokenizer.decode(&g.tokens)?.trim().to_string();
                Ok(Reply { text, finish: g.finish, ids: g.tokens })
            })
            .collect()
    }
}

/// The tokens that end an answer, the tokenizer's first.
pub fn end_tokens(tokenizer: &Tokenizer, config: &Config) -> Vec<u32> {
    let mut eos = tokenizer.eos().to_vec();
    eos.extend(config.eos().into_iter().filter(|id| !tokenizer.eos().contains(id)));
    eos
}

/// True if the last of `ids` completes one of `texts`, as transformers looks for stop strings: in prompt and reply, special tokens included.
fn ends_with_any(tokenizer: &Tokenizer, ids: &[u32], texts: &[String]) -> bool {
    // A token has at least one byte, but for the odd empty one.
    let longest = texts.iter().map(String::len).max().unwrap_or(0);
    let tail = &ids[ids.len().saturating_sub(longest + 8)..];
    let (whole, before) =
        (tokenizer.decode_all(tail), tokenizer.decode_all(&tail[..tail.len().saturating_sub(1)]));
    let known = whole.bytes().zip(before.bytes()).take_while(|(a, b)| a == b).count();
    let mut ends = (known + 1..=whole.len()).filter(|&end| whole.is_char_boundary(end));
    ends.any(|end| texts.iter().any(|text| whole[..end].ends_with(text.as_str())))
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Its text, trimmed.
    pub text: String,
    /// Why it ended.
    pub finish: Finish,
    /// Its ids as they were generated, without the end token.
    pub ids: Vec<u32>,
}
