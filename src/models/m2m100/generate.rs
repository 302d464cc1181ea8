//! Greedy and beam search over batches of sentences.
use anyhow::{Context, Result, ensure};

use super::{
    M2m100,
    beam::{Candidate, Search},
    config::BeamParams,
    forward::{Runner, StepRow},
};
use crate::{
    ops::{
        beam_step::{BeamRules, beam_step},
        rows::gather_rows,
    },
    tensor::{DType, Tensor},
};

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
pub struct Request {
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
    requests: &[Request],
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
    let total: usize = requests.iter().map(|r| r.tokens.len()).sum();
    let budget = options.batch_tokens.min(total).max(requests[longest].tokens.len());
    let sentences = (options.batch_rows / params.num_beams).clamp(1, requests.len());
    let rows = sentences * params.num_beams;
    let mut batches = Batches {
        runner: Runner::new(model, budget, rows, params.max_length)?,
        logits: Tensor::zeros_on(&model.device(), "logits", DType::F32, &[rows, config.vocab_size])?,
        states: Tensor::zeros_on(
            &model.device(),
            "states",
            model.activation_dtype(),
            &[rows, config.d_model],
        )?,
        model,
        params,
    };
    let mut out: Vec<Option<Translated>> = vec![None; requests.len()];
    let mut from = 0;
    while from < order.len() {
        let (mut to, mut tokens) = (from, 0);
        while to < order.len() && to - from < sentences {
            tokens += requests[order[to]].tokens.len();
            if to > from && tokens > budget {
                break;
            }
            to += 1;
        }
        let batch: Vec<&Request> = order[from..to].iter().map(|&i| &requests[i]).collect();
        for (&i, translated) in order[from..to].iter().zip(batches.run(&batch, on_done)?) {
            out[i] = Some(translated);
        }
        from = to;
    }
    out.into_iter().map(|t| t.context("a sentence was lost")).collect()
}

struct Batches<'m> {
    runner: Runner<'m>,
    logits: Tensor,
    states: Tensor,
    model: &'m M2m100,
    params: &'m BeamParams,
}

/// A sentence of the batch that is not done.
struct Live<'r> {
    index: usize,
    request: &'r Request,
    source: (usize, usize),
    search: Search,
}

impl Batches<'_> {
    fn run(&mut self, batch: &[&Request], on_done: &mut dyn FnMut(usize)) -> Result<Vec<Translated>> {
        let (beams, eos) = (self.params.num_beams, self.model.config.eos_token_id);
        let sources: Vec<&[u32]> = batch.iter().map(|r| r.tokens.as_slice()).collect();
        self.runner.encode(&sources)?;
        let mut at = 0;
        let mut live = vec![];
        for (index, &request) in batch.iter().enumerate() {
            let source = (at, request.tokens.len());
            at += source.1;
            let regions = (index * beams..(index + 1) * beams).collect();
            let search = Search::new(self.model.config.decoder_start_token_id, regions);
            live.push(Live { index, request, source, search });
        }
        let mut out: Vec<Option<Translated>> = vec![None; batch.len()];
        let mut cached = 0;
        while !live.is_empty() {
            let candidates = self.candidates(&live, cached)?;
            cached += 1;
            let mut copies = vec![];
            for (one, candidates) in live.iter_mut().zip(&candidates) {
                let moved = one.search.advance(candidates, self.params, eos);
                if !one.search.done {
                    copies.extend(moved);
                }
            }
            let (done, going): (Vec<Live>, Vec<Live>) = live.into_iter().partition(|l| l.search.done);
            live = going;
            on_done(done.len());
            for one in done {
                let (score, tokens) = one.search.best().context("a search ended without a hypothesis")?;
                let complete = tokens.last() == Some(&eos);
                out[one.index] = Some(Translated { tokens, score, complete });
            }
            self.runner.copy_regions(&copies, cached)?;
        }
        out.into_iter().map(|t| t.context("a sentence was lost")).collect()
    }

    /// The best continuations of each sentence, after one step of every running hypothesis.
    fn candidates(&mut self, live: &[Live], length: usize) -> Result<Vec<Vec<Candidate>>> {
        let mut rows = vec![];
        for one in live {
            let step = |h: &super::beam::Hypothesis| {
                let token = h.tokens.last().copied().context("a hypothesis without tokens")?;
                Ok(StepRow { token, region: h.region, length, source: one.source })
            };
            rows.extend(one.search.running.iter().map(step).collect::<Result<Vec<_>>>()?);
        }
        let states = self.runner.step(&rows)?;
        // The language code is given, not searched: the first step needs no logits.
        let forced: Option<Vec<u32>> =
            live.iter().map(|l| l.request.forced_bos.filter(|_| length == 0)).collect();
        if let Some(forced) = forced {
            return Ok(forced.into_iter().map(|token| vec![(0.0, 0, token)]).collect());
        }
        let beams = self.params.num_beams;
        let (n, device) = (live.len() * beams, self.model.device());
        let states = self.every_beam(live, &states)?;
        let mut logits = self.logits.rows(0..n)?;
        self.runner.logits(&mut logits, &states)?;
        let (mut scores, mut forbidden, mut forced) = (vec![], vec![], vec![]);
        for one in live {
            for beam in 0..beams {
                let running = one.search.running.get(beam);
                scores.push(running.map_or(f32::NEG_INFINITY, |h| h.score));
                forbidden.push(
                    running
                        .map_or(vec![], |h| Search::forbidden(&h.tokens, self.params.no_repeat_ngram_size)),
                );
                forced.push(one.request.forced_bos.filter(|_| length == 0));
            }
        }
        let forbidden: Vec<&[u32]> = forbidden.iter().map(Vec::as_slice).collect();
        let rules = BeamRules::new(&device, &forbidden, &forced, self.model.config.vocab_size)?;
        let scores = Tensor::from_f32("scores", &[live.len(), beams], &scores)?.to_device(&device)?;
        let best =
            |name: &str, dtype: DType| Tensor::zeros_on(&device, name, dtype, &[live.len(), 2 * beams]);
        let (mut best_scores, mut from, mut tokens) = (
            best("best_scores", DType::F32)?,
            best("best_beams", DType::U32)?,
            best("best_tokens", DType::U32)?,
        );
        beam_step(&mut best_scores, &mut from, &mut tokens, &mut logits, &scores, &rules)?;
        let (best_scores, from, tokens) =
            (best_scores.to_f32_vec()?, from.to_u32_vec()?, tokens.to_u32_vec()?);
        let mut out = vec![];
        for i in 0..live.len() {
            let of = i * 2 * beams..(i + 1) * 2 * beams;
            ensure!(
                !best_scores[of.start].is_nan(),
                "the model's logits are not finite: are its weights sound?"
            );
            out.push(of.map(|j| (best_scores[j], from[j] as usize, tokens[j])).collect());
        }
        Ok(out)
    }

    /// The states of as many rows a sentence as there are beams; while fewer hypotheses run, the first fills up.
    fn every_beam(&mut self, live: &[Live], states: &Tensor) -> Result<Tensor> {
        let beams = self.params.num_beams;
        if live.iter().all(|l| l.search.running.len() == beams) {
            return Ok(states.clone());
        }
        let (mut map, mut first) = (vec![], 0);
        for one in live {
            let running = one.search.running.len();
            map.extend((0..beams).map(|beam| (first + if beam < running { beam } else { 0 }) as u32));
            first += running;
        }
        let map = Tensor::from_u32("beams", &[map.len()], &map)?.to_device(&self.model.device())?;
        let mut out = self.states.rows(0..map.len())?;
        gather_rows(&mut out, states, &map)?;
        Ok(out)
    }
}
