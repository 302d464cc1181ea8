//! Greedy and beam search over batches of sentences.
use anyhow::{Context, Result, ensure};

use super::{
    M2m100,
    beam::{Candidate, Search},
    config::BeamParams,
    forward::{Runner, StepRow},
};
use crate::{
    models::slots::Slots,
    ops::{
        beam_step::{BeamRules, beam_step},
        rows::gather_rows,
    },
    tensor::{DType, Tensor},
};

/// Sentences join the batch once one seat in this many is free.
const JOIN: usize = 4;

/// How much runs at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GenerateOptions {
    /// Hypotheses that decode together: sentences times beams.
    pub batch_rows: usize,
    /// Source tokens that are encoded together.
    pub batch_tokens: usize,
}

impl Default for GenerateOptions {
    fn default() -> GenerateOptions {
        GenerateOptions { batch_rows: 96, batch_tokens: 2048 }
    }
}

/// A sentence to translate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TranslationRequest {
    /// The source's ids, with language code and end token.
    pub tokens: Vec<u32>,
    /// The id that the translation begins with (`forced_bos_token_id`), if any.
    pub forced_bos: Option<u32>,
}

/// A translated sentence.
#[derive(Clone, Debug, PartialEq)]
pub struct Translated {
    /// All ids: start token, language code, text, and the end token unless the length ran out.
    pub tokens: Vec<u32>,
    /// Log-probability over (generated length ^ length_penalty).
    pub score: f32,
    /// It ended with the end token.
    pub complete: bool,
}

/// Translates `requests`; results are in their order and do not depend on how they are batched. `on_done(n)` is told of sentences done.
pub fn generate(
    model: &M2m100,
    requests: &[TranslationRequest],
    params: &BeamParams,
    options: GenerateOptions,
    on_done: &mut dyn FnMut(usize),
) -> Result<Vec<Translated>> {
    params.check(&model.config)?;
    let config = &model.config;
    for (i, r) in requests.iter().enumerate() {
        ensure!(!r.tokens.is_empty(), "sentence {i} has no tokens");
        ensure!(
            r.tokens.len() <= config.max_position_embeddings,
            "sentence {i} has {} tokens, the model takes {}: split it",
            r.tokens.len(),
            config.max_position_embeddings
        );
        let beyond = r.tokens.iter().chain(&r.forced_bos).find(|&&t| t as usize >= config.vocab_size);
        ensure!(
            beyond.is_none(),
            "sentence {i}: token {beyond:?} is beyond the model's vocabulary of {}: does the tokenizer belong to the model?",
            config.vocab_size
        );
    }
    let mut order: Vec<usize> = (0..requests.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(requests[i].tokens.len()), i));
    let Some(&longest) = order.first() else { return Ok(vec![]) };
    let seats = (options.batch_rows / params.num_beams).clamp(1, requests.len());
    // No more source tokens are ever held than the longest sentences have together.
    let most: usize = order[..seats].iter().map(|&i| requests[i].tokens.len()).sum();
    let budget = options.batch_tokens.min(most).max(requests[longest].tokens.len());
    let rows = seats * params.num_beams;
    let zeros =
        |name: &str, dtype: DType, cols: usize| Tensor::zeros_on(&model.device(), name, dtype, &[rows, cols]);
    let mut batch = Batch {
        runner: Runner::new(model, budget, rows, params.max_length)?,
        logits: zeros("logits", DType::F32, config.vocab_size)?,
        states: zeros("states", model.activation_dtype(), config.d_model)?,
        slots: Slots::new(budget),
        // The first come first.
        free: (0..seats).rev().collect(),
        seats,
        live: vec![],
        model,
        params,
    };
    let mut out: Vec<Option<Translated>> = vec![None; requests.len()];
    let mut queue = order.as_slice();
    while !queue.is_empty() || !batch.live.is_empty() {
        batch.admit(requests, &mut queue)?;
        let done = batch.step()?;
        on_done(done.len());
        for (index, translated) in done {
            out[index] = Some(translated);
        }
    }
    out.into_iter().map(|t| t.context("a sentence was lost")).collect()
}

/// The sentences being translated. The longest begin; whenever enough are done, the next join, so that steps stay full.
struct Batch<'m> {
    runner: Runner<'m>,
    logits: Tensor,
    states: Tensor,
    slots: Slots,
    /// Seats without a sentence; seat i has as many regions of the cache as there are beams, from i * beams on.
    free: Vec<usize>,
    seats: usize,
    live: Vec<Live<'m>>,
    model: &'m M2m100,
    params: &'m BeamParams,
}

/// A sentence that is not done.
struct Live<'r> {
    index: usize,
    request: &'r TranslationRequest,
    seat: usize,
    /// First slot and number of its tokens.
    source: (usize, usize),
    search: Search,
}

impl Live<'_> {
    /// The token that the next step takes whatever the logits are.
    fn forced(&self, params: &BeamParams) -> Option<u32> {
        let length = self.search.length();
        let last = length + 2 == params.max_length;
        self.request.forced_bos.filter(|_| length == 0).or(params.forced_eos.filter(|_| last))
    }
}

impl<'m> Batch<'m> {
    /// Seats sentences from the front of the queue, once a share of the seats is free: encoding a few words costs nearly what encoding many does.
    fn admit(&mut self, requests: &'m [TranslationRequest], queue: &mut &[usize]) -> Result<()> {
        if !self.live.is_empty() && self.free.len() * JOIN < self.seats {
            return Ok(());
        }
        let beams = self.params.num_beams;
        let first = self.live.len();
        while let (Some((&index, rest)), Some(&seat)) = (queue.split_first(), self.free.last()) {
            let request = &requests[index];
            let Some(start) = self.slots.take(request.tokens.len()) else { break };
            let regions = (seat * beams..(seat + 1) * beams).collect();
            let search = Search::new(self.model.config.decoder_start_token_id, regions);
            let source = (start, request.tokens.len());
            self.live.push(Live { index, request, seat, source, search });
            self.free.pop();
            *queue = rest;
        }
        let new = &self.live[first..];
        if new.is_empty() {
            return Ok(());
        }
        let sources: Vec<&[u32]> = new.iter().map(|l| l.request.tokens.as_slice()).collect();
        let starts: Vec<usize> = new.iter().map(|l| l.source.0).collect();
        self.runner.encode(&sources, &starts).map(drop)
    }

    /// One token for every running hypothesis; the sentences that are done then, by index.
    fn step(&mut self) -> Result<Vec<(usize, Translated)>> {
        let eos = self.model.config.eos_token_id;
        let candidates = self.candidates()?;
        let (mut copies, mut done, mut going) = (vec![], vec![], vec![]);
        for (mut one, candidates) in std::mem::take(&mut self.live).into_iter().zip(&candidates) {
            let length = one.search.length() + 1;
            let moved = one.search.advance(candidates, self.params, eos);
            if !one.search.done {
                copies.extend(moved.into_iter().map(|(from, to)| (from, to, length)));
                going.push(one);
                continue;
            }
            self.free.push(one.seat);
            self.slots.give_back(one.source.0, one.source.1);
            let (score, tokens) = one.search.best().context("a search ended without a hypothesis")?;
            let complete = tokens.last() == Some(&eos);
            done.push((one.index, Translated { tokens, score, complete }));
        }
        self.live = going;
        self.runner.copy_regions(&copies)?;
        Ok(done)
    }

    /// The best continuations of each sentence, after one step of every running hypothesis.
    fn candidates(&mut self) -> Result<Vec<Vec<Candidate>>> {
        let (mut rows, mut firsts) = (vec![], vec![]);
        for one in &self.live {
            firsts.push(rows.len());
            for h in &one.search.running {
                let token = h.tokens.last().copied().context("a hypothesis without tokens")?;
                rows.push(StepRow {
                    token,
                    region: h.region,
                    length: one.search.length(),
                    source: one.source,
                });
            }
        }
        let states = self.runner.step(&rows)?;
        // The language code is given, not searched: the first step of a sentence needs no logits.
        let given = |one: &Live| one.request.forced_bos.filter(|_| one.search.length() == 0);
        let mut out: Vec<Vec<Candidate>> = self
            .live
            .iter()
            .map(|one| given(one).map(|token| (0.0, 0, token)).into_iter().collect())
            .collect();
        let searched: Vec<usize> = (0..self.live.len()).filter(|&i| out[i].is_empty()).collect();
        if searched.is_empty() {
            return Ok(out);
        }
        let states = self.every_beam(&states, &searched, &firsts)?;
        let mut logits = self.logits.rows(0..states.shape()[0])?;
        self.runner.logits(&mut logits, &states)?;
        for (&i, found) in searched.iter().zip(self.best(&mut logits, &searched)?) {
            out[i] = found;
        }
        Ok(out)
    }

    /// The best candidates of the sentences `searched` by their rows of logits.
    fn best(&self, logits: &mut Tensor, searched: &[usize]) -> Result<Vec<Vec<Candidate>>> {
        let (beams, n, device) = (self.params.num_beams, searched.len(), self.model.device());
        let (mut scores, mut forbidden, mut forced) = (vec![], vec![], vec![]);
        for one in searched.iter().map(|&i| &self.live[i]) {
            let token = one.forced(self.params);
            for beam in 0..beams {
                let running = one.search.running.get(beam);
                scores.push(running.map_or(f32::NEG_INFINITY, |h| h.score));
                // As in transformers, a forced token outdoes the rule.
                let ruled = running.filter(|_| token.is_none());
                let ngram = self.params.no_repeat_ngram_size;
                forbidden.push(ruled.map_or(vec![], |h| Search::forbidden(&h.tokens, ngram)));
                forced.push(token);
            }
        }
        let forbidden: Vec<&[u32]> = forbidden.iter().map(Vec::as_slice).collect();
        let rules = BeamRules::new(&device, &forbidden, &forced, self.model.config.vocab_size)?;
        let scores = Tensor::from_f32("scores", &[n, beams], &scores)?.to_device(&device)?;
        let best = |name: &str, dtype: DType| Tensor::zeros_on(&device, name, dtype, &[n, 2 * beams]);
        let (mut best_scores, mut from, mut tokens) = (
            best("best_scores", DType::F32)?,
            best("best_beams", DType::U32)?,
            best("best_tokens", DType::U32)?,
        );
        beam_step(&mut best_scores, &mut from, &mut tokens, logits, &scores, &rules)?;
        let (best_scores, from, tokens) =
            (best_scores.to_f32_vec()?, from.to_u32_vec()?, tokens.to_u32_vec()?);
        let mut out = vec![];
        for i in 0..n {
            let of = i * 2 * beams..(i + 1) * 2 * beams;
            ensure!(
                !best_scores[of.start].is_nan(),
                "the model's logits are not finite: are its weights sound?"
            );
            out.push(of.map(|j| (best_scores[j], from[j] as usize, tokens[j])).collect());
        }
        Ok(out)
    }

    /// The states of the sentences `searched`, as many rows a sentence as there are beams; while fewer hypotheses run, the first fills up.
    /// `firsts` are the sentences' first rows of `states`.
    fn every_beam(&mut self, states: &Tensor, searched: &[usize], firsts: &[usize]) -> Result<Tensor> {
        let beams = self.params.num_beams;
        let mut map = Vec::with_capacity(searched.len() * beams);
        for &i in searched {
            let running = self.live[i].search.running.len();
            map.extend((0..beams).map(|beam| (firsts[i] + if beam < running { beam } else { 0 }) as u32));
        }
        if map.len() == states.shape()[0] && map.iter().enumerate().all(|(i, &row)| i == row as usize) {
            return Ok(states.alias());
        }
        let map = Tensor::from_u32("beams", &[map.len()], &map)?.to_device(&self.model.device())?;
        let mut out = self.states.rows(0..map.len())?;
        gather_rows(&mut out, states, &map)?;
        Ok(out)
    }
}
