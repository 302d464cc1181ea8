//! Batched generation: rows of any lengths run together without padding, longest first; a row that ends makes room for the next.
use std::cmp::Reverse;

use crate::error::Error;
use anyhow::{Context, Result, ensure};

use super::{kv_cache::KvCache, sampler::SamplingParams};
use crate::{
    data::random::row_id,
    models::{transformer::decode::Decoder, transformer::weights::Transformer},
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

/// True if a reply ends with the last of these tokens, prompt and reply.
pub type StopTest<'a> = dyn Fn(&[u32]) -> bool + 'a;

/// Runs one model.
pub struct Engine<'m> {
    pub(super) model: &'m Transformer,
    pub(super) options: EngineOptions,
    stop: Option<&'m StopTest<'m>>,
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
    pub fn new(model: &'m Transformer, options: EngineOptions) -> Result<Engine<'m>> {
        let sizes = options.batch_rows.min(options.batch_tokens);
        ensure!(sizes > 0, Error::setting("batch-rows, batch-tokens", "batch sizes must be at least 1"));
        Ok(Engine { model, options, stop: None })
    }

    /// Replies end where `stop` says so, too.
    pub fn stopping(self, stop: Option<&'m StopTest<'m>>) -> Engine<'m> {
        Engine { stop, ..self }
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
        requests.iter().try_for_each(|r| self.check_prompt(r, params))?;
        if requests.is_empty() {
            return Ok(vec![]);
        }
        let mut run = Run::new(self, requests, params)?;
        let mut done: Vec<Option<Generated>> = vec![None; requests.len()];
        while run.next < requests.len() || !run.active.is_empty() {
            let joining = run.join();
            let (turn, hidden) = run.forward(joining)?;
            run.choose(turn, &hidden, &mut |i, row| {
                on_done(i, &row);
                done[i] = Some(row);
            })?;
        }
        done.into_iter().map(|d| d.context("a row was lost")).collect()
    }

    fn check_prompt(&self, r: &Request, params: &SamplingParams) -> Result<()> {
        let (context, vocab) = (self.context(), self.model.config.vocab_size);
        let (row, tokens) = (format!("row {}", r.id), r.tokens.len());
        ensure!(tokens > 0, Error::bad_input(&row, format!("{row}: the prompt is empty")));
        let long = || format!("{row}: the prompt has {tokens} tokens, the model takes {context}: shorten it");
        ensure!(tokens < context, Error::bad_input(&row, long()));
        ensure!(
            r.tokens.len() < params.limit(r.tokens.len()),
            "row {}: the prompt has {} tokens, and max_length in the model's generation_config.json is {}: say how long replies may be with --max-new-tokens",
            r.id,
            r.tokens.len(),
            params.max_length.unwrap_or(0)
        );
        ensure!(
            r.tokens.iter().all(|&t| (t as usize) < vocab),
            "row {}: a token is beyond the model's vocabulary of {vocab}: does the tokenizer belong to the model?",
            r.id
        );
        Ok(())
    }
}

/// The rows of one call of [`Engine::generate`] and the memory that they share.
struct Run<'r> {
    model: &'r Transformer,
    requests: &'r [Request],
    params: &'r SamplingParams,
    context: usize,
    stop: Option<&'r StopTest<'r>>,
    /// Rows that run together.
    rows: usize,
    /// Tokens of prompts in one call.
    prompt_tokens: usize,
    penalized: bool,
    cache: KvCache,
    decoder: Decoder,
    logits: Tensor,
    last: Tensor,
    sampler: Sampler,
    /// The requests in the order in which they begin, and the first that has not begun.
    order: Vec<usize>,
    next: usize,
    active: Vec<Row>,
}

impl<'r> Run<'r> {
    fn new(engine: &Engine<'r>, requests: &'r [Request], params: &'r SamplingParams) -> Result<Run<'r>> {
        let (model, context) = (engine.model, engine.context());
        let longest = requests.iter().map(|r| reserved(r, params, context)).max().unwrap_or(0);
        let rows = engine.options.batch_rows.min(requests.len());
        let config = &model.config;
        let (device, acts) = (model.device(), model.activation_dtype());
        let (layers, width) = (config.num_hidden_layers, config.kv_size());
        let cache = KvCache::new(layers, width, longest * rows, &device, acts)?;
        let lengths = || requests.iter().map(|r| r.tokens.len());
        let prompt_tokens = lengths().max().unwrap_or(1).max(engine.options.batch_tokens);
        let prompt_tokens = lengths().sum::<usize>().min(prompt_tokens).max(rows);
        let decoder = Decoder::new(model, prompt_tokens, longest)?;
        let logits = Tensor::zeros_on(&device, "logits", DType::F32, &[rows, config.vocab_size])?;
        let last = Tensor::zeros_on(&device, "last_hidden", acts, &[rows, config.hidden_size])?;
        let sampler = Sampler::new(&device, rows, rows * params.listed(longest))?;
        // The longest begin, so that no long row is left to run alone at the end.
        let mut order: Vec<usize> = (0..requests.len()).collect();
        order.sort_by_key(|&i| Reverse(requests[i].tokens.len()));
        let penalized = params.repetition_penalty != 1.0;
        Ok(Run {
            model,
            requests,
            params,
            context,
            stop: engine.stop,
            rows,
            prompt_tokens,
            penalized,
            cache,
            decoder,
            logits,
            last,
            sampler,
            order,
            next: 0,
            active: vec![],
        })
    }

    /// The next requests that there is room for.
    fn join(&mut self) -> Vec<Row> {
        let (mut joining, mut tokens) = (vec![], 0);
        while self.next < self.requests.len() && self.active.len() + joining.len() < self.rows {
            let request = self.order[self.next];
            let r = &self.requests[request];
            if !joining.is_empty() && tokens + r.tokens.len() > self.prompt_tokens {
                break;
            }
            let reserved = reserved(r, self.params, self.context);
            let Some(start) = self.cache.allocate(reserved) else { break };
            tokens += r.tokens.len();
            let mut unique = if self.penalized { r.tokens.clone() } else { vec![] };
            unique.sort_unstable();
            unique.dedup();
            joining.push(Row {
                request,
                seen: r.tokens.clone(),
                prompt: r.tokens.len(),
                start,
                reserved,
                id: row_id("generate", &r.id),
                unique,
            });
            self.next += 1;
        }
        joining
    }

    /// The rows whose turn it is, and the hidden state of each one's last token. Rows that just joined take their first token now; the others
    /// wait for the next step.
    fn forward(&mut self, joining: Vec<Row>) -> Result<(Vec<Row>, Tensor)> {
        if joining.is_empty() {
            let turn = std::mem::take(&mut self.active);
            let step: Vec<_> =
                turn.iter().map(|r| (r.seen[r.seen.len() - 1], r.start, r.seen.len() - 1)).collect();
            let hidden = self.decoder.step(self.model, &step, &mut self.cache.layers)?;
            return Ok((turn, hidden));
        }
        let prompts: Vec<&[u32]> = joining.iter().map(|r| r.seen.as_slice()).collect();
        let slots: Vec<usize> = joining.iter().map(|r| r.start).collect();
        let hidden = self.decoder.prompts(self.model, &prompts, Some(&mut self.cache.layers), &slots)?;
        let mut last = self.last.rows(0..prompts.len())?;
        gather_last(&mut last, &hidden, &prompts)?;
        Ok((joining, last))
    }

    /// Chooses a token for each row of `turn`; what does not end stays active.
    fn choose(
        &mut self,
        turn: Vec<Row>,
        hidden: &Tensor,
        on_done: &mut dyn FnMut(usize, Generated),
    ) -> Result<()> {
        let mut logits = self.logits.rows(0..turn.len())?;
        self.decoder.logits(self.model, &mut logits, hidden)?;
        let (params, vocab) = (self.params, self.model.config.vocab_size);
        let generated = |row: &Row| row.seen.len() - row.prompt;
        let banned: Vec<Vec<u32>> =
            turn.iter().map(|r| params.banned(&r.seen, generated(r), vocab)).collect();
        let sampled: Vec<SamplingRow> = turn
            .iter()
            .zip(&banned)
            .map(|(r, banned)| SamplingRow { id: r.id, step: generated(r) as u32, seen: &r.unique, banned })
            .collect();
        let chosen = self.sampler.sample(&mut logits, &sampled, &params.sampling())?;
        for (token, mut row) in chosen.into_iter().zip(turn) {
            let token = params.forced(&row.seen, row.prompt).or(token).with_context(|| {
                format!(
                    "row {}: no token can be chosen: the model's logits are not finite (are its weights sound?) or every token is banned",
                    self.requests[row.request].id
                )
            })?;
            let mut stop = params.eos.contains(&token);
            if !stop {
                row.push(token, self.penalized);
                stop = self.stop.is_some_and(|ends| ends(&row.seen));
            }
            if stop || row.seen.len() >= row.reserved {
                self.cache.release(row.start, row.reserved);
                let finish = if stop { Finish::Stop } else { Finish::Length };
                on_done(row.request, Generated { tokens: row.seen.split_off(row.prompt), finish });
            } else {
                self.active.push(row);
            }
        }
        Ok(())
    }
}

/// Places in the cache that a request may need: prompt and reply, within the model's context.
fn reserved(request: &Request, params: &SamplingParams, context: usize) -> usize {
    params.limit(request.tokens.len()).min(context)
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
