//! Log-likelihoods of given texts: sorted by length, packed without padding into batches of a token budget, handed back in their order. What a
//! text gets does not depend on its batch.
use std::cmp::Reverse;

use anyhow::{Context, Result, bail, ensure};

use super::engine::Engine;
use crate::{
    models::decode::Decoder,
    ops::{
        cross_entropy::{Scratch, linear_cross_entropy_forward},
        rows::gather_rows,
        sampling::{Sampler, Sampling, SamplingRow},
    },
    tensor::{Arena, DType, Tensor},
};

/// A text to score.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScoreRequest {
    /// All ids.
    pub tokens: Vec<u32>,
    /// The first that is scored (at least 1).
    pub start: usize,
}

/// A scored text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scored {
    /// ln p(tokens\[i\] | tokens\[..i\]) for i in start.., in nats.
    pub log_probs: Vec<f32>,
    /// Whether greedy decoding would write the scored tokens.
    pub greedy: bool,
}

/// Rows of logits that are looked through for their largest at a time.
const GREEDY_ROWS: usize = 64;

/// What scoring a batch needs beside the model.
struct Buffers {
    decoder: Decoder,
    scratch: Scratch,
    greedy: Option<Greedy>,
}

struct Greedy {
    logits: Tensor,
    hidden: Tensor,
    sampler: Sampler,
}

impl Engine<'_> {
    /// Log-probabilities of each request's tokens from its start on.
    pub fn log_probs(
        &mut self,
        requests: &[ScoreRequest],
        on_done: &mut dyn FnMut(usize),
    ) -> Result<Vec<Vec<f32>>> {
        Ok(self.scored(requests, false, on_done)?.into_iter().map(|s| s.log_probs).collect())
    }

    /// The same, and whether the scored tokens are the likeliest ones.
    pub fn score(
        &mut self,
        requests: &[ScoreRequest],
        on_done: &mut dyn FnMut(usize),
    ) -> Result<Vec<Scored>> {
        self.scored(requests, true, on_done)
    }

    fn scored(
        &mut self,
        requests: &[ScoreRequest],
        greedy: bool,
        on_done: &mut dyn FnMut(usize),
    ) -> Result<Vec<Scored>> {
        self.check(requests)?;
        let longest = requests.iter().map(|r| r.tokens.len()).max().unwrap_or(0);
        let total: usize = requests.iter().map(|r| r.tokens.len()).sum();
        let budget = self.options.batch_tokens.max(longest).min(total);
        if budget == 0 {
            return Ok(vec![]);
        }
        let mut buffers = self.buffers(budget, longest, greedy)?;
        let mut order: Vec<usize> = (0..requests.len()).collect();
        order.sort_by_key(|&i| Reverse(requests[i].tokens.len()));
        let mut out = vec![Scored::default(); requests.len()];
        let mut rest = &order[..];
        while !rest.is_empty() {
            let mut tokens = 0;
            let fits = |&&i: &&usize| {
                tokens += requests[i].tokens.len();
                tokens <= budget
            };
            // The budget holds the longest, so that every batch takes at least one.
            let (now, later) = rest.split_at(rest.iter().take_while(fits).count().max(1));
            let batch: Vec<&ScoreRequest> = now.iter().map(|&i| &requests[i]).collect();
            for (&i, scored) in now.iter().zip(self.score_batch(&mut buffers, &batch)?) {
                out[i] = scored;
            }
            on_done(now.len());
            rest = later;
        }
        Ok(out)
    }

    fn check(&self, requests: &[ScoreRequest]) -> Result<()> {
        let (context, vocab) = (self.context(), self.model.config.vocab_size);
        for (i, r) in requests.iter().enumerate() {
            ensure!(
                r.start >= 1 && r.start <= r.tokens.len(),
                "text {i}: nothing stands before its first scored token"
            );
            if r.tokens.len() > context {
                bail!("text {i} has {} tokens, the model takes {context}: shorten it", r.tokens.len());
            }
            ensure!(
                r.tokens.iter().all(|&t| (t as usize) < vocab),
                "text {i}: a token is beyond the vocabulary of {vocab}"
            );
        }
        Ok(())
    }

    fn buffers(&self, budget: usize, longest: usize, greedy: bool) -> Result<Buffers> {
        let (device, acts) = (self.model.device(), self.model.activation_dtype());
        let (vocab, width) = (self.model.config.vocab_size, self.model.config.hidden_size);
        let decoder = Decoder::new(self.model, budget, longest)?;
        let (scratch, _) = Arena::build("loss scratch", &device, |a| {
            Scratch::lay_out(a, acts, budget, vocab, width, 48 << 20)
        })?;
        let rows = || -> Result<Greedy> {
            Ok(Greedy {
                logits: Tensor::zeros_on(&device, "logits", DType::F32, &[GREEDY_ROWS, vocab])?,
                hidden: Tensor::zeros_on(&device, "scored_hidden", acts, &[GREEDY_ROWS, width])?,
                sampler: Sampler::new(&device, GREEDY_ROWS, 0)?,
            })
        };
        Ok(Buffers { decoder, scratch, greedy: greedy.then(rows).transpose()? })
    }

    fn score_batch(&self, buffers: &mut Buffers, batch: &[&ScoreRequest]) -> Result<Vec<Scored>> {
        let texts: Vec<&[u32]> = batch.iter().map(|r| r.tokens.as_slice()).collect();
        let n: usize = texts.iter().map(|t| t.len()).sum();
        let hidden = buffers.decoder.prompts(self.model, &texts, None, &[])?;
        let (mut targets, mut weights) = (vec![], vec![]);
        for r in batch {
            for i in 0..r.tokens.len() {
                targets.push(r.tokens.get(i + 1).copied().unwrap_or(0));
                weights.push(if i + 1 >= r.start && i + 1 < r.tokens.len() { 1.0 } else { 0.0 });
            }
        }
        let device = self.model.device();
        let ids = Tensor::from_u32("targets", &[n], &targets)?.to_device(&device)?;
        let token_weights = Tensor::from_f32("token_weights", &[n], &weights)?.to_device(&device)?;
        let mut losses = Tensor::zeros_on(&device, "losses", DType::F32, &[n])?;
        linear_cross_entropy_forward(
            &mut losses,
            &mut buffers.scratch,
            &hidden,
            &self.model.weights.lm_head,
            &ids,
            &token_weights,
        )?;
        let losses = losses.to_f32_vec()?;
        let mut likeliest = vec![true; n];
        if let Some(greedy) = &mut buffers.greedy {
            let scored: Vec<usize> = (0..n).filter(|&i| weights[i] > 0.0).collect();
            for positions in scored.chunks(GREEDY_ROWS) {
                let found = greedy.tokens(self, &buffers.decoder, &hidden, positions)?;
                positions.iter().zip(found).for_each(|(&i, token)| likeliest[i] = token == targets[i]);
            }
        }
        let mut at = 0;
        Ok(batch
            .iter()
            .map(|r| {
                let own = at + r.start - 1..at + r.tokens.len() - 1;
                at += r.tokens.len();
                Scored {
                    log_probs: losses[own.clone()].iter().map(|x| -x).collect(),
                    greedy: likeliest[own].iter().all(|x| *x),
                }
            })
            .collect())
    }
}

impl Greedy {
    /// The likeliest token behind each of these rows of `hidden`.
    fn tokens(
        &mut self,
        engine: &Engine,
        decoder: &Decoder,
        hidden: &Tensor,
        rows: &[usize],
    ) -> Result<Vec<u32>> {
        let map: Vec<u32> = rows.iter().map(|&i| i as u32).collect();
        let map = Tensor::from_u32("scored_rows", &[rows.len()], &map)?.to_device(&hidden.device())?;
        let (mut states, mut logits) = (self.hidden.rows(0..rows.len())?, self.logits.rows(0..rows.len())?);
        gather_rows(&mut states, hidden, &map)?;
        decoder.logits(engine.model, &mut logits, &states)?;
        let greedy = Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, repetition_penalty: 1.0, seed: 0 };
        let found = self.sampler.sample(&mut logits, &vec![SamplingRow::default(); rows.len()], &greedy)?;
        found
            .into_iter()
            .map(|token| token.context("the model's logits are not finite: are its weights sound?"))
            .collect()
    }
}
