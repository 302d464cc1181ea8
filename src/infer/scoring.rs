//! Log-likelihoods of given texts, packed without padding into batches of a token budget, handed back in their order.
//!
//! Texts share what they can: equal inputs run once, and behind a context that several texts have (the choices of a question) each runs its
//! own tokens only. What a text gets depends on nothing but the text.
use std::{cmp::Reverse, ops::Range};

use anyhow::{Context, Result, bail, ensure};

use super::{engine::Engine, kv_cache::KvCache};
use crate::{
    models::transformer::{decode::Decoder, linear::Rows, weights::Transformer},
    ops::{
        cross_entropy::cross_entropy_forward,
        rows::gather_rows,
        sampling::{Sampler, Sampling, SamplingRow},
    },
    tensor::{DType, Tensor},
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
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    /// ln p(tokens\[i\] | tokens\[..i\]) for i in start.., in nats.
    pub log_probs: Vec<f32>,
    /// Whether greedy decoding would write the scored tokens.
    pub greedy: bool,
}

impl ScoreRequest {
    /// What runs as a prompt, and what runs token by token behind it: the tokens before the first scored one and the others without the last,
    /// after which nothing is asked; or all as a prompt where little stands before the first scored one, or where rotary frequencies `switch` between the two.
    fn split(&self, switch: Option<usize>) -> (&[u32], &[u32]) {
        let inputs = &self.tokens[..self.tokens.len() - 1];
        let across = switch.is_some_and(|length| self.start <= length && length < inputs.len());
        let shared = if inputs.len() <= 2 * self.start && !across { self.start } else { inputs.len() };
        inputs.split_at(shared.min(inputs.len()))
    }
}

/// Requests with one prompt.
struct Group<'r> {
    prompt: &'r [u32],
    /// Every different tail, and whose it is; it may be empty.
    tails: Vec<(&'r [u32], Vec<usize>)>,
}

impl Group<'_> {
    /// Tokens of the cache: the tails take turns behind the prompt.
    fn slots(&self) -> usize {
        self.prompt.len() + self.tails.iter().map(|t| t.0.len()).max().unwrap_or(0)
    }

    fn requests(&self) -> impl Iterator<Item = usize> {
        self.tails.iter().flat_map(|t| t.1.iter().copied())
    }
}

/// The requests that have something to score, grouped; the longest first.
fn groups(requests: &[ScoreRequest], switch: Option<usize>) -> Vec<Group<'_>> {
    let scored = requests.iter().enumerate().filter(|(_, r)| r.start < r.tokens.len());
    let mut parts: Vec<_> = scored.map(|(i, r)| (r.split(switch), i)).collect();
    parts.sort_unstable();
    let mut groups: Vec<Group> = parts
        .chunk_by(|a, b| a.0.0 == b.0.0)
        .map(|same| Group {
            prompt: same[0].0.0,
            tails: same
                .chunk_by(|a, b| a.0.1 == b.0.1)
                .map(|equal| (equal[0].0.1, equal.iter().map(|p| p.1).collect()))
                .collect(),
        })
        .collect();
    groups.sort_by_key(|g| Reverse(g.slots()));
    groups
}

/// A row of hidden states whose next token is scored.
struct Wanted {
    row: usize,
    target: u32,
    request: usize,
    /// Where among the request's log-probabilities.
    at: usize,
}

/// What scoring a batch needs beside the model.
struct Buffers {
    decoder: Decoder,
    /// Absent where no text has a tail.
    cache: Option<KvCache>,
    head: Head,
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
        let empty =
            |r: &ScoreRequest| Scored { log_probs: vec![0.0; r.tokens.len() - r.start], greedy: true };
        let mut out: Vec<Scored> = requests.iter().map(empty).collect();
        let groups = groups(requests, self.model.spec.switches_beyond());
        let total: usize = groups.iter().map(Group::slots).sum();
        let Some(longest) = groups.first().map(Group::slots) else { return Ok(out) };
        let budget = self.options.batch_tokens.max(longest).min(total);
        let tails = groups.iter().any(|g| g.slots() > g.prompt.len());
        let mut buffers = self.buffers(budget, longest, tails, greedy)?;
        let mut rest = &groups[..];
        while !rest.is_empty() {
            let mut slots = 0;
            let fits = |g: &&Group| {
                slots += g.slots();
                slots <= budget
            };
            // The budget holds the longest, so that every batch takes at least one.
            let (batch, later) = rest.split_at(rest.iter().take_while(fits).count().max(1));
            self.score_batch(&mut buffers, requests, batch, &mut out)?;
            on_done(batch.iter().map(|g| g.requests().count()).sum());
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
            // The last token is not run.
            if r.tokens.len() > context + 1 {
                bail!("text {i} has {} tokens, the model takes {context}: shorten it", r.tokens.len());
            }
            ensure!(
                r.tokens.iter().all(|&t| (t as usize) < vocab),
                "text {i}: a token is beyond the vocabulary of {vocab}"
            );
        }
        Ok(())
    }

    fn buffers(&self, budget: usize, longest: usize, tails: bool, greedy: bool) -> Result<Buffers> {
        let (device, acts) = (self.model.device(), self.model.activation_dtype());
        let (layers, width) = (self.model.config.num_hidden_layers, self.model.config.kv_size());
        let cache = || KvCache::new(layers, width, budget, &device, acts);
        Ok(Buffers {
            decoder: Decoder::new(self.model, budget, longest)?,
            cache: tails.then(cache).transpose()?,
            head: Head::new(self.model, budget, greedy)?,
        })
    }

    /// The prompts together, then round by round the next tail of each.
    fn score_batch(
        &self,
        buffers: &mut Buffers,
        requests: &[ScoreRequest],
        batch: &[Group],
        out: &mut [Scored],
    ) -> Result<()> {
        let Buffers { decoder, cache, head } = buffers;
        // The rows of hidden states from `row` on are those of a request's tokens `positions`.
        let wanted = |request: usize, positions: Range<usize>, row: usize| {
            let r = &requests[request];
            let first = positions.start;
            positions.map(move |p| Wanted {
                row: row + p - first,
                target: r.tokens[p + 1],
                request,
                at: p + 1 - r.start,
            })
        };
        let prompts: Vec<&[u32]> = batch.iter().map(|g| g.prompt).collect();
        let (mut slots, mut slot, mut row, mut rows) = (vec![], 0, 0, vec![]);
        for g in batch {
            for i in g.requests() {
                let first = requests[i].start - 1;
                rows.extend(wanted(i, first..g.prompt.len(), row + first));
            }
            slots.push(slot);
            slot += g.slots();
            row += g.prompt.len();
        }
        let layers = cache.as_mut().map(|c| c.layers.as_mut_slice());
        let hidden = decoder.prompts(self.model, &prompts, layers, &slots)?;
        head.read(self.model, &hidden, &mut rows, out)?;
        let Some(cache) = cache else { return Ok(()) };
        let rounds = batch.iter().map(|g| g.tails.len()).max().unwrap_or(0);
        for round in 0..rounds {
            let (mut step, mut rows) = (vec![], vec![]);
            for (g, &slot) in batch.iter().zip(&slots) {
                let Some((tail, of)) = g.tails.get(round) else { continue };
                let first = g.prompt.len();
                for &i in of {
                    rows.extend(wanted(i, first..first + tail.len(), step.len()));
                }
                step.extend(tail.iter().enumerate().map(|(j, &token)| (token, slot, first + j)));
            }
            if !step.is_empty() {
                let hidden = decoder.step(self.model, &step, &mut cache.layers)?;
                head.read(self.model, &hidden, &mut rows, out)?;
            }
        }
        Ok(())
    }
}

/// Bytes of logits that exist at a time.
const LOGITS_BYTES: usize = 48 << 20;

/// From hidden states to scores.
struct Head {
    hidden: Tensor,
    logits: Tensor,
    losses: Tensor,
    /// Where it is asked what greedy decoding would write.
    sampler: Option<Sampler>,
}

impl Head {
    fn new(model: &Transformer, most: usize, greedy: bool) -> Result<Head> {
        let (device, acts) = (model.device(), model.activation_dtype());
        let (vocab, width) = (model.config.vocab_size, model.config.hidden_size);
        let rows = (LOGITS_BYTES / (4 * vocab)).clamp(16, 1024).min(most);
        Ok(Head {
            hidden: Tensor::zeros_on(&device, "scored_hidden", acts, &[rows, width])?,
            logits: Tensor::zeros_on(&device, "logits", DType::F32, &[rows, vocab])?,
            losses: Tensor::zeros_on(&device, "losses", DType::F32, &[rows])?,
            sampler: greedy.then(|| Sampler::new(&device, rows, 0)).transpose()?,
        })
    }

    /// Scores what is wanted of `hidden` (N, C) into `out`. The logits of a row are made once, however many targets it has.
    fn read(
        &mut self,
        model: &Transformer,
        hidden: &Tensor,
        wanted: &mut [Wanted],
        out: &mut [Scored],
    ) -> Result<()> {
        wanted.sort_by_key(|w| w.row);
        let mut rows: Vec<&[Wanted]> = wanted.chunk_by(|a, b| a.row == b.row).collect();
        // Those with the most targets first, so that those with another one are always the first.
        rows.sort_by_key(|w| Reverse(w.len()));
        let device = model.device();
        for rows in rows.chunks(self.logits.shape()[0]) {
            let n = rows.len();
            let (mut states, mut logits) = (self.hidden.rows(0..n)?, self.logits.rows(0..n)?);
            let map: Vec<u32> = rows.iter().map(|w| w[0].row as u32).collect();
            gather_rows(
                &mut states,
                hidden,
                &Tensor::from_u32("scored_rows", &[n], &map)?.to_device(&device)?,
            )?;
            model.logits(&mut logits, &states, Rows::Many)?;
            for turn in 0..rows[0].len() {
                let now: Vec<&Wanted> = rows.iter().map_while(|w| w.get(turn)).collect();
                let targets: Vec<u32> = now.iter().map(|w| w.target).collect();
                let targets = Tensor::from_u32("targets", &[now.len()], &targets)?.to_device(&device)?;
                let mut losses = self.losses.rows(0..now.len())?;
                cross_entropy_forward(&mut losses, &mut self.logits.rows(0..now.len())?, &targets)?;
                for (w, loss) in now.iter().zip(losses.to_f32_vec()?) {
                    out[w.request].log_probs[w.at] = -loss;
                }
            }
            if let Some(sampler) = &mut self.sampler {
                let how = Sampling {
                    temperature: 0.0,
                    top_k: 0,
                    top_p: 1.0,
                    min_p: 0.0,
                    repetition_penalty: 1.0,
                    seed: 0,
                };
                let likeliest = sampler.sample(&mut logits, &vec![SamplingRow::default(); n], &how)?;
                for (rows, token) in rows.iter().zip(likeliest) {
                    let token = token.context("the model's logits are not finite: are its weights sound?")?;
                    rows.iter().for_each(|w| out[w.request].greedy &= w.target == token);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (Prompt tokens, tokens of each tail, requests of each tail) of every group.
    fn plan(texts: &[(&[u32], usize)]) -> Vec<(usize, Vec<(usize, usize)>)> {
        let requests: Vec<ScoreRequest> =
            texts.iter().map(|&(tokens, start)| ScoreRequest { tokens: tokens.to_vec(), start }).collect();
        let shape = |g: &Group| (g.prompt.len(), g.tails.iter().map(|t| (t.0.len(), t.1.len())).collect());
        groups(&requests, None).iter().map(shape).collect()
    }

    #[test]
    fn work_is_shared_where_it_saves_some() {
        // Choices of one token: one prompt, nothing behind it.
        assert_eq!(plan(&[(&[1, 2, 3, 4], 3), (&[1, 2, 3, 5], 3), (&[1, 2, 3, 6], 3)]), [(3, vec![(0, 3)])]);
        // Of several tokens: each its own behind the prompt, equal ones once.
        let texts: [(&[u32], usize); 4] =
            [(&[1, 2, 3, 4, 5], 3), (&[1, 2, 3, 5], 3), (&[1, 2, 3, 6, 7, 8], 3), (&[1, 2, 3, 4, 6], 3)];
        assert_eq!(plan(&texts), [(3, vec![(0, 1), (1, 2), (2, 1)])]);
        // Texts scored from their second token on run whole.
        assert_eq!(
            plan(&[(&[1, 2, 3, 4, 5], 1), (&[1, 2, 3, 9], 1)]),
            [(4, vec![(0, 1)]), (3, vec![(0, 1)])]
        );
        // Nothing is scored.
        assert_eq!(plan(&[(&[1, 2, 3], 3)]), []);
    }
}
