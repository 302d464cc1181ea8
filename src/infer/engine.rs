//! Batched generation: rows of any lengths run together without padding, longest first; a row that ends makes room for the next.
use std::cmp::Reverse;

use anyhow::{Context, Result, ensure};

use super::{kv_cache::KvCache, sampler::SamplingParams};
use crate::{
    data::random::row_id,
    models::{transformer::decode::Decoder, transformer::weights::Llama},
    ops::{
        rows::gather_rows,
        sampling::{Sampler, SamplingRow},
    },
    tensor::{DType, Tensor},
};

/// How much runs at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// Rows that decode together.
    pub batch_rows: usize,
    /// Tokens of prompts (or of texts to score) in one call.
    pub batch_tokens: usize,
}

impl Default for EngineOptions {
    fn default() -> EngineOptions {
        EngineOptions { batch_rows: 16, batch_tokens: 2048 }
    }
}

/// A prompt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Seeds the row's draws.
    pub id: String,
    /// The prompt's ids.
    pub tokens: Vec<u32>,
}

/// Why a row ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// An end token.
    Stop,
    /// `max_new_tokens`, or the model's context.
    Length,
}

impl Finish {
    /// `stop` or `length`.
    pub fn name(self) -> &'static str {
        if self == Finish::Stop { "stop" } else { "length" }
    }
}

/// A finished row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generated {
    /// The new ids, without the end token.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish: Finish,
}

/// Runs one model.
pub struct Engine<'m> {
    pub(super) model: &'m Llama,
    pub(super) options: EngineOptions,
}

struct Row {
    request: usize,
    seen: Vec<u32>,
    prompt: usize,
    start: usize,
    reserved: usize,
    id: u64,
    /// The tokens seen, each once, rising; empty where no penalty needs them.
    unique: Vec<u32>,
}

impl Row {
    fn push(&mut self, token: u32, penalized: bool) {
        self.seen.push(token);
        if let (true, Err(at)) = (penalized, self.unique.binary_search(&token)) {
            self.unique.insert(at, token);
        }
    }
}

impl<'m> Engine<'m> {
    /// An engine over `model`.
    pub fn new(model: &'m Llama, options: EngineOptions) -> Result<Engine<'m>> {
        ensure!(options.batch_rows > 0 && options.batch_tokens > 0, "batch sizes must be at least 1");
        Ok(Engine { model, options })
    }

    /// The longest sequence that the model takes.
    pub fn context(&self) -> usize {
        self.model.config.max_position_embeddings
    }

    /// Continues every prompt; `on_done(i, row)` is told of each as it ends. Results are in the requests' order.
    pub fn generate(
        &mut self,
        requests: &[Request],
        params: &SamplingParams,
        on_done: &mut dyn FnMut(usize, &Generated),
    ) -> Result<Vec<Generated>> {
        params.check()?;
        let context = self.context();
        for r in requests {
            ensure!(!r.tokens.is_empty(), "row {}: the prompt is empty", r.id);
            ensure!(
                r.tokens.len() < context,
                "row {}: the prompt has {} tokens, the model takes {context}: shorten it",
                r.id,
                r.tokens.len()
            );
            let vocab = self.model.config.vocab_size;
            ensure!(
                r.tokens.iter().all(|&t| (t as usize) < vocab),
                "row {}: a token is beyond the model's vocabulary of {vocab}: does the tokenizer belong to the model?",
                r.id
            );
        }
        let reserve = |r: &Request| (r.tokens.len() + params.max_new_tokens).min(context);
        let longest = requests.iter().map(reserve).max().unwrap_or(0);
        if longest == 0 {
            return Ok(vec![]);
        }
        let rows = self.options.batch_rows.min(requests.len());
        let config = &self.model.config;
        let (device, acts) = (self.model.device(), self.model.activation_dtype());
        let (layers, width) = (config.num_hidden_layers, config.kv_size());
        let mut cache = KvCache::new(layers, width, longest * rows, &device, acts)?;
        let prompt_tokens =
            requests.iter().map(|r| r.tokens.len()).max().unwrap_or(1).max(self.options.batch_tokens);
        let most = requests.iter().map(|r| r.tokens.len()).sum::<usize>().min(prompt_tokens).max(rows);
        let mut decoder = Decoder::new(self.model, most, longest)?;
        let logits = Tensor::zeros_on(&device, "logits", DType::F32, &[rows, config.vocab_size])?;
        let last = Tensor::zeros_on(&device, "last_hidden", acts, &[rows, config.hidden_size])?;
        let mut sampler = Sampler::new(&device, rows, rows * params.listed(longest))?;
        let (sampling, penalized) = (params.sampling(), params.repetition_penalty != 1.0);
        // The longest begin, so that no long row is left to run alone at the end.
        let mut order: Vec<usize> = (0..requests.len()).collect();
        order.sort_by_key(|&i| Reverse(requests[i].tokens.len()));
        let mut done: Vec<Option<Generated>> = vec![None; requests.len()];
        let (mut active, mut next): (Vec<Row>, usize) = (vec![], 0);
        while next < requests.len() || !active.is_empty() {
            let mut joining = vec![];
            let mut tokens = 0;
            while next < requests.len() && active.len() + joining.len() < rows {
                let r = &requests[order[next]];
                if !joining.is_empty() && tokens + r.tokens.len() > most {
                    break;
                }
                let reserved = reserve(r);
                let Some(start) = cache.allocate(reserved) else { break };
                tokens += r.tokens.len();
                let mut unique = if penalized { r.tokens.clone() } else { vec![] };
                unique.sort_unstable();
                unique.dedup();
                joining.push(Row {
                    request: order[next],
                    seen: r.tokens.clone(),
                    prompt: r.tokens.len(),
                    start,
                    reserved,
                    id: row_id("generate", &r.id),
                    unique,
                });
                next += 1;
            }
            let hidden = if joining.is_empty() {
                let step: Vec<_> =
                    active.iter().map(|r| (r.seen[r.seen.len() - 1], r.start, r.seen.len() - 1)).collect();
                decoder.step(self.model, &step, &mut cache.layers)?
            } else {
                let prompts: Vec<&[u32]> = joining.iter().map(|r| r.seen.as_slice()).collect();
                let slots: Vec<usize> = joining.iter().map(|r| r.start).collect();
                let hidden = decoder.prompts(self.model, &prompts, Some(&mut cache.layers), &slots)?;
                let mut last = last.rows(0..prompts.len())?;
                gather_last(&mut last, &hidden, &prompts)?;
                last
            };
            // Rows that just joined take their first token now; the others wait for the next step.
            let turn: &mut Vec<Row> = if joining.is_empty() { &mut active } else { &mut joining };
            let mut logits = logits.rows(0..turn.len())?;
            decoder.logits(self.model, &mut logits, &hidden)?;
            let generated = |row: &Row| row.seen.len() - row.prompt;
            let banned: Vec<Vec<u32>> =
                turn.iter().map(|r| params.banned(&r.seen, generated(r), config.vocab_size)).collect();
            let sampled: Vec<SamplingRow> = turn
                .iter()
                .zip(&banned)
                .map(|(r, banned)| SamplingRow {
                    id: r.id,
                    step: generated(r) as u32,
                    seen: &r.unique,
                    banned,
                })
                .collect();
            let chosen = sampler.sample(&mut logits, &sampled, &sampling)?;
            let mut kept = vec![];
            for (token, mut row) in chosen.into_iter().zip(turn.drain(..)) {
                let token = token.with_context(|| {
                    format!(
                        "row {}: no token can be chosen: the model's logits are not finite (are its weights sound?) or every token is banned",
                        requests[row.request].id
                    )
                })?;
                let stop = params.eos.contains(&token);
                if !stop {
                    row.push(token, penalized);
                }
                if stop || row.seen.len() >= row.reserved {
                    cache.release(row.start, row.reserved);
                    let finish = if stop { Finish::Stop } else { Finish::Length };
                    let generated = Generated { tokens: row.seen.split_off(row.prompt), finish };
                    on_done(row.request, &generated);
                    done[row.request] = Some(generated);
                } else {
                    kept.push(row);
                }
            }
            active.extend(kept);
        }
        done.into_iter().map(|d| d.context("a row was lost")).collect()
    }
}

/// The hidden state of each prompt's last token.
fn gather_last(last: &mut Tensor, hidden: &Tensor, prompts: &[&[u32]]) -> Result<()> {
    let ends: Vec<u32> = prompts
        .iter()
        .scan(0, |end, p| {
            *end += p.len() as u32;
            Some(*end - 1)
        })
        .collect();
    let map = Tensor::from_u32("last_tokens", &[ends.len()], &ends)?.to_device(&hidden.device())?;
    gather_rows(last, hidden, &map)
}
