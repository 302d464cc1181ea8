//! Batched generation: rows of any lengths run together without padding, longest first; a row that ends makes room for the next.
use std::{cmp::Reverse, sync::Arc};

use crate::error::Error;
use anyhow::{Context, Result, ensure};

use super::{
    sampler::SamplingParams,
    session::{Room, Session, Told, check_prompt, reserved},
};
use crate::models::transformer::{decode::Adapted, weights::Transformer};

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
    adapted: Adapted<'m>,
    pub(super) options: EngineOptions,
    stop: Option<&'m StopTest<'m>>,
}

impl<'m> Engine<'m> {
    /// An engine over `model`. Adapters beside it count in [`Engine::generate`].
    pub fn new(model: impl Into<Adapted<'m>>, options: EngineOptions) -> Result<Engine<'m>> {
        let adapted = model.into();
        let sizes = options.batch_rows.min(options.batch_tokens);
        ensure!(sizes > 0, Error::setting("batch-rows, batch-tokens", "batch sizes must be at least 1"));
        Ok(Engine { model: adapted.model, adapted, options, stop: None })
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
        requests.iter().try_for_each(|r| check_prompt(self.model, r, params, self.context()))?;
        if requests.is_empty() {
            return Ok(vec![]);
        }
        let stop = self.stop.map(|stop| Box::new(move |seen: &[u32]| stop(seen)) as Box<StopTest>);
        let mut session = Session::new(self.adapted, self.room(requests, params), stop)?;
        // The longest begin, so that no long row is left to run alone at the end.
        let mut order: Vec<usize> = (0..requests.len()).collect();
        order.sort_by_key(|&i| Reverse(requests[i].tokens.len()));
        let params = Arc::new(params.clone());
        for &i in &order {
            session.submit(requests[i].clone(), params.clone())?;
        }
        let mut done: Vec<Option<Generated>> = vec![None; requests.len()];
        let mut failed = None;
        while !session.is_idle() && failed.is_none() {
            session.step(&mut |ticket, told| match told {
                Told::Token(_) => {}
                Told::Done(row) => {
                    on_done(order[ticket], &row);
                    done[order[ticket]] = Some(row);
                }
                Told::Failed(why) => drop(failed.get_or_insert(why)),
            })?;
        }
        match failed {
            Some(why) => Err(why),
            None => done.into_iter().map(|d| d.context("a row was lost")).collect(),
        }
    }

    /// What these requests need, no more.
    fn room(&self, requests: &[Request], params: &SamplingParams) -> Room {
        let longest = requests.iter().map(|r| reserved(r, params, self.context())).max().unwrap_or(0);
        let rows = self.options.batch_rows.min(requests.len());
        let lengths = || requests.iter().map(|r| r.tokens.len());
        let prompt_tokens = lengths().max().unwrap_or(1).max(self.options.batch_tokens);
        let prompt_tokens = lengths().sum::<usize>().min(prompt_tokens).max(rows);
        Room { rows, slots: longest * rows, longest, prompt_tokens, listed: rows * params.listed(longest) }
    }
}
