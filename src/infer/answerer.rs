//! A model with everything that turns questions into answers.
use std::{path::Path, sync::Arc};

use anyhow::{Context, Result, ensure};

use super::{
    engine::{Engine, EngineOptions, Request},
    sampler::{GenerationConfig, SamplingParams},
};
use crate::{
    data::{conversation::Prompt, template::ChatTemplate, tokenizer::Tokenizer},
    models::{
        transformer::{lora::Lora, weights::Llama},
        weights::resolve,
    },
    pipeline::placement::Placement,
    recipe::generate::GenerateSettings,
};

/// A model with everything that turns questions into answers.
pub struct Answerer {
    /// The model, with its adapter merged.
    pub model: Llama,
    /// Its tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// How prompts are rendered.
    pub template: Arc<ChatTemplate>,
    /// Its generation_config.json.
    pub generation: GenerationConfig,
}

impl Answerer {
    /// Loads a model by path or name, merges the adapter if any.
    pub fn load(
        model: &str,
        adapter: Option<&Path>,
        placement: Placement,
        template: &str,
    ) -> Result<Answerer> {
        let path = resolve(model)?;
        let tokenizer = Tokenizer::load(&path)?;
        let template = ChatTemplate::load(template, &tokenizer)?;
        let mut llama = Llama::load(&path, placement.dtype)?;
        if let Some(dir) = adapter {
            llama.apply_adapter(&Lora::load(dir, &llama)?)?;
        }
        ensure!(
            tokenizer.vocab_size() <= llama.config.vocab_size,
            "the tokenizer has {} tokens, the model {}: do they belong together?",
            tokenizer.vocab_size(),
            llama.config.vocab_size
        );
        let generation = GenerationConfig::from_model(&path)?;
        Ok(Answerer {
            model: llama.place(placement.device)?,
            tokenizer: tokenizer.into(),
            template: template.into(),
            generation,
        })
    }

    /// The settings with what they leave open taken from generation_config.json.
    pub fn sampling(&self, s: &GenerateSettings) -> SamplingParams {
        let g = &self.generation;
        let default = SamplingParams::default();
        let mut eos = self.tokenizer.eos().to_vec();
        eos.extend(self.model.config.eos().into_iter().filter(|id| !self.tokenizer.eos().contains(id)));
        SamplingParams {
            max_new_tokens: s.max_new_tokens,
            min_new_tokens: s.min_new_tokens,
            temperature: s.temperature.or(g.temperature).unwrap_or(default.temperature),
            top_k: s.top_k.or(g.top_k).unwrap_or(default.top_k),
            top_p: s.top_p.or(g.top_p).unwrap_or(default.top_p),
            repetition_penalty: s
                .repetition_penalty
                .or(g.repetition_penalty)
                .unwrap_or(default.repetition_penalty),
            no_repeat_ngram_size: s.no_repeat_ngram_size.or(g.no_repeat_ngram_size).unwrap_or(0),
            eos,
            seed: s.seed,
        }
    }

    /// Answers (id, instruction, input): texts, trimmed, with why each ended and its number of tokens.
    pub fn answer(
        &self,
        questions: &[(&str, &str, &str)],
        settings: &GenerateSettings,
        on_done: &mut dyn FnMut(usize),
    ) -> Result<Vec<(String, &'static str, usize)>> {
        let mut requests = vec![];
        for (id, instruction, input) in questions {
            let tokens = self
                .template
                .encode_prompt(&self.tokenizer, settings.system.as_deref(), instruction, input)
                .with_context(|| format!("row {id}"))?;
            requests.push(Request { id: id.to_string(), tokens });
        }
        let options = EngineOptions { batch_rows: settings.batch_rows, batch_tokens: settings.batch_tokens };
        let mut engine = Engine::new(&self.model, options)?;
        let done = engine.generate(&requests, &self.sampling(settings), &mut |_, _| on_done(1))?;
        done.into_iter()
            .map(|g| {
                Ok((self.tokenizer.decode(&g.tokens)?.trim().to_string(), g.finish.name(), g.tokens.len()))
            })
            .collect()
    }
}
