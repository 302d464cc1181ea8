//! Requests that run together on one model: rows of any lengths without padding; a row that ends makes room for the next, and new ones join at any time.
use std::{collections::VecDeque, sync::Arc};

use anyhow::{Error as Failure, Result, anyhow, ensure};

use super::{
    engine::{Finish, Generated, Request, StopTest},
    kv_cache::KvCache,
    sampler::SamplingParams,
};
use crate::{
    data::random::row_id,
    error::Error,
    models::transformer::{
        decode::{Adapted, Decoder},
        spec::Spec,
        weights::Transformer,
    },
    ops::{
        rows::gather_rows,
        sampling::{Sampler, SamplingRow},
    },
    tensor::{DType, Tensor},
};

/// The memory of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Rows that decode together.
    pub rows: usize,
    /// Tokens in the key/value cache, of all rows that run.
    pub slots: usize,
    /// Tokens of prompt and reply of a row, at most.
    pub longest: usize,
    /// Tokens of prompts in one call; the longest prompt has no more. A model whose rotary frequencies switch takes as many as that needs.
    pub prompt_tokens: usize,
    /// Tokens in the lists of what is penalised or banned; grows where it does not suffice.
    pub listed: usize,
}

impl Room {
    /// What a session of a model with this room allocates, bytes by purpose, activations of type `acts`.
    pub fn bytes(&self, spec: &Spec, acts: DType) -> [(&'static str, usize); 2] {
        let logits = self.rows * (spec.vocab_size * 4 + spec.hidden_size * acts.bytes());
        let scratch = Decoder::bytes(spec, self.tokens_at_once(spec), acts) + logits;
        let cache = KvCache::bytes(spec.layers.len(), spec.kv_size(), self.slots, acts);
        [("key/value cache", cache), ("scratch", scratch)]
    }
}

impl Room {
    /// Tokens of a call of the model: of prompts, or of a row whose keys are computed again ([`Spec::switches_beyond`]).
    fn tokens_at_once(&self, spec: &Spec) -> usize {
        let again = spec.switches_beyond().filter(|&length| length < self.longest).map_or(0, |l| l + 1);
        self.prompt_tokens.max(again)
    }
}

/// What became of a request.
#[derive(Debug)]
pub enum Told {
    /// It has one more token.
    Token(u32),
    /// It has ended.
    Done(Generated),
    /// Nothing can be chosen for it; the others go on.
    Failed(Failure),
}

/// The number of a request in its session.
pub type Ticket = usize;

/// A request that waits for room.
struct Waiting {
    ticket: Ticket,
    request: Request,
    params: Arc<SamplingParams>,
}

struct Row {
    ticket: Ticket,
    name: String,
    params: Arc<SamplingParams>,
    seen: Vec<u32>,
    prompt: usize,
    start: usize,
    reserved: usize,
    id: u64,
    /// The tokens seen, each once, rising; empty where no penalty needs them.
    unique: Vec<u32>,
}

impl Row {
    fn penalized(&self) -> bool {
        self.params.repetition_penalty != 1.0
    }

    fn push(&mut self, token: u32) {
        self.seen.push(token);
        if let (true, Err(at)) = (self.penalized(), self.unique.binary_search(&token)) {
            self.unique.insert(at, token);
        }
    }

    fn generated(&self) -> usize {
        self.seen.len() - self.prompt
    }
}

/// One model at work on requests.
pub struct Session<'m> {
    adapted: Adapted<'m>,
    model: &'m Transformer,
    room: Room,
    stop: Option<Box<StopTest<'m>>>,
    cache: KvCache,
    decoder: Decoder,
    logits: Tensor,
    last: Tensor,
    sampler: Sampler,
    listed: usize,
    next: Ticket,
    waiting: VecDeque<Waiting>,
    active: Vec<Row>,
}

impl<'m> Session<'m> {
    /// Allocates everything. A reply ends where `stop` says so, too.
    ///
    /// # Errors
    /// Too little memory.
    pub fn new(
        model: impl Into<Adapted<'m>>,
        room: Room,
        stop: Option<Box<StopTest<'m>>>,
    ) -> Result<Session<'m>> {
        let adapted = model.into();
        let (model, config) = (adapted.model, &adapted.model.config);
        let (device, acts) = (model.device(), model.activation_dtype());
        let (layers, width) = (config.num_hidden_layers, config.kv_size());
        let logits = Tensor::zeros_on(&device, "logits", DType::F32, &[room.rows, config.vocab_size])?;
        let last = Tensor::zeros_on(&device, "last_hidden", acts, &[room.rows, config.hidden_size])?;
        Ok(Session {
            cache: KvCache::new(layers, width, room.slots, &device, acts)?,
            decoder: Decoder::new(adapted, room.tokens_at_once(&model.spec), room.longest)?,
            logits,
            last,
            sampler: Sampler::new(&device, room.rows, room.listed)?,
            listed: room.listed,
            adapted,
            model,
            room,
            stop,
            next: 0,
            waiting: VecDeque::new(),
            active: vec![],
        })
    }

    /// Puts a request behind those that wait. Its number is known to [`Session::step`] and [`Session::cancel`].
    ///
    /// # Errors
    /// A prompt that is empty, that leaves no room for a reply, or that does not belong to the model; settings that mean nothing.
    pub fn submit(&mut self, request: Request, params: Arc<SamplingParams>) -> Result<Ticket> {
        params.check()?;
        check_prompt(self.model, &request, &params, self.room.longest)?;
        let ticket = self.next;
        self.next += 1;
        self.waiting.push_back(Waiting { ticket, request, params });
        Ok(ticket)
    }

    /// Nobody wants the reply any more: its room is free for others at once.
    pub fn cancel(&mut self, ticket: Ticket) {
        self.waiting.retain(|w| w.ticket != ticket);
        if let Some(at) = self.active.iter().position(|r| r.ticket == ticket) {
            let row = self.active.remove(at);
            self.cache.release(row.start, row.reserved);
        }
    }

    /// Whether nothing is left to do.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.active.is_empty()
    }

    /// Requests that wait for room.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// One call of the model: the prompts that there is room for, or else one token of every row. `on` is told what became of each request.
    ///
    /// # Errors
    /// A failing device.
    pub fn step(&mut self, on: &mut dyn FnMut(Ticket, Told)) -> Result<()> {
        let joining = self.join();
        if joining.is_empty() && self.active.is_empty() {
            return Ok(());
        }
        let (turn, hidden) = self.forward(joining)?;
        self.choose(turn, &hidden, on)
    }

    /// The next requests that there is room for.
    fn join(&mut self) -> Vec<Row> {
        let (mut joining, mut tokens) = (vec![], 0);
        while let Some(w) = self.waiting.front() {
            let prompt = w.request.tokens.len();
            let full = !joining.is_empty() && tokens + prompt > self.room.prompt_tokens;
            if full || self.active.len() + joining.len() == self.room.rows {
                break;
            }
            let reserved = reserved(&w.request, &w.params, self.room.longest);
            let Some(start) = self.cache.allocate(reserved) else { break };
            let Some(Waiting { ticket, request, params }) = self.waiting.pop_front() else { break };
            tokens += prompt;
            let mut row = Row {
                ticket,
                id: row_id("generate", &request.id),
                name: request.id,
                params,
                seen: request.tokens,
                prompt,
                start,
                reserved,
                unique: vec![],
            };
            if row.penalized() {
                row.unique = row.seen.clone();
                row.unique.sort_unstable();
                row.unique.dedup();
            }
            joining.push(row);
        }
        joining
    }

    /// The rows whose turn it is, and the hidden state of each one's last token. Rows that just joined take their first token now; the others
    /// wait for the next step.
    fn forward(&mut self, mut joining: Vec<Row>) -> Result<(Vec<Row>, Tensor)> {
        if joining.is_empty() {
            joining.extend(self.switching());
        }
        if joining.is_empty() {
            let turn = std::mem::take(&mut self.active);
            let step: Vec<_> =
                turn.iter().map(|r| (r.seen[r.seen.len() - 1], r.start, r.seen.len() - 1)).collect();
            let hidden = self.decoder.step(self.adapted, &step, &mut self.cache.layers)?;
            return Ok((turn, hidden));
        }
        let prompts: Vec<&[u32]> = joining.iter().map(|r| r.seen.as_slice()).collect();
        let slots: Vec<usize> = joining.iter().map(|r| r.start).collect();
        let hidden = self.decoder.prompts(self.adapted, &prompts, Some(&mut self.cache.layers), &slots)?;
        let mut last = self.last.rows(0..prompts.len())?;
        gather_last(&mut last, &hidden, &prompts)?;
        Ok((joining, last))
    }

    /// A row that has just grown beyond the length where frequencies switch: all of it goes through the model again, as transformers does it.
    fn switching(&mut self) -> Option<Row> {
        let beyond = self.model.spec.switches_beyond()?;
        let at = self.active.iter().position(|r| r.seen.len() == beyond + 1)?;
        Some(self.active.remove(at))
    }

    /// Chooses a token for each row of `turn`; what does not end stays active.
    fn choose(&mut self, turn: Vec<Row>, hidden: &Tensor, on: &mut dyn FnMut(Ticket, Told)) -> Result<()> {
        let chosen = self.sample(&turn, hidden)?;
        for (token, mut row) in chosen.into_iter().zip(turn) {
            let Some(token) = row.params.forced(&row.seen, row.prompt).or(token) else {
                self.cache.release(row.start, row.reserved);
                let why = "no token can be chosen: the model's logits are not finite (are its weights sound?) or every token is banned";
                on(row.ticket, Told::Failed(anyhow!("row {}: {why}", row.name)));
                continue;
            };
            let mut stop = row.params.eos.contains(&token);
            if !stop {
                row.push(token);
                on(row.ticket, Told::Token(token));
                stop = self.stop.as_ref().is_some_and(|ends| ends(&row.seen));
            }
            if stop || row.seen.len() >= row.reserved {
                self.cache.release(row.start, row.reserved);
                let finish = if stop { Finish::Stop } else { Finish::Length };
                let tokens = row.seen.split_off(row.prompt);
                on(row.ticket, Told::Done(Generated { tokens, finish }));
            } else {
                self.active.push(row);
            }
        }
        Ok(())
    }

    /// A token for each row; neighbours with the same settings are chosen for in one call.
    fn sample(&mut self, turn: &[Row], hidden: &Tensor) -> Result<Vec<Option<u32>>> {
        let mut logits = self.logits.rows(0..turn.len())?;
        self.decoder.logits(self.model, &mut logits, hidden)?;
        let vocab = self.model.config.vocab_size;
        let banned: Vec<Vec<u32>> =
            turn.iter().map(|r| r.params.banned(&r.seen, r.generated(), vocab)).collect();
        let listed: usize = turn.iter().zip(&banned).map(|(r, banned)| r.unique.len() + banned.len()).sum();
        if listed > self.listed {
            self.listed = 2 * listed;
            self.sampler = Sampler::new(&self.model.device(), self.room.rows, self.listed)?;
        }
        let rows: Vec<SamplingRow> = turn
            .iter()
            .zip(&banned)
            .map(|(r, banned)| SamplingRow { id: r.id, step: r.generated() as u32, seen: &r.unique, banned })
            .collect();
        let (mut chosen, mut from) = (vec![], 0);
        while from < turn.len() {
            let how = turn[from].params.sampling();
            let same = turn[from..].iter().take_while(|r| r.params.sampling() == how).count();
            let mut part = logits.rows(from..from + same)?;
            chosen.extend(self.sampler.sample(&mut part, &rows[from..from + same], &how)?);
            from += same;
        }
        Ok(chosen)
    }
}

/// An error unless a model can continue the prompt within `longest` tokens.
pub(super) fn check_prompt(
    model: &Transformer,
    r: &Request,
    params: &SamplingParams,
    longest: usize,
) -> Result<()> {
    let vocab = model.config.vocab_size;
    let (row, tokens) = (format!("row {}", r.id), r.tokens.len());
    ensure!(tokens > 0, Error::bad_input(&row, format!("{row}: the prompt is empty")));
    let long = || format!("{row}: the prompt has {tokens} tokens, the model takes {longest}: shorten it");
    ensure!(tokens < longest, Error::bad_input(&row, long()));
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

/// Places in the cache that a request may need: prompt and reply, within `longest`.
pub(super) fn reserved(request: &Request, params: &SamplingParams, longest: usize) -> usize {
    params.limit(request.tokens.len()).min(longest)
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
