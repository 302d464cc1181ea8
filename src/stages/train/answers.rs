//! The answers that an on-policy objective learns from: drawn from the model in training, as it would say them.
use std::path::Path;

use anyhow::{Result, ensure};

use crate::{
    data::{
        alarms::{has_content, is_loop},
        token_shard::TokenShard,
        tokenizer::Tokenizer,
    },
    distributed::team::Team,
    error::Error,
    infer::{
        answerer::end_tokens,
        engine::{Engine, EngineOptions, Finish, Generated, Request},
        sampler::SamplingParams,
    },
    models::transformer::{decode::Adapted, train_step::Trainable, weights::Transformer},
    recipe::{objective::Rollouts, train::TrainSettings},
    report::progress::Progress,
    train::on_policy::{Answer, Answers, OnPolicy, Question, drawn},
};

/// What draws answers. Of a model's generation settings its end tokens alone count: anything else would not be its own distribution.
pub(super) struct Sampled {
    tokenizer: Tokenizer,
    params: SamplingParams,
}

impl Sampled {
    /// Of the model at `path`; nothing where the objective draws none.
    ///
    /// # Errors
    /// An adapter that replaces modules of the base; a tokenizer that cannot be read; questions that leave no room for an answer, in a batch or in the model's context.
    pub fn new(
        s: &TrainSettings,
        path: &Path,
        (model, trainable): (&Transformer, &Trainable),
        shards: [Option<&TokenShard>; 2],
    ) -> Result<Option<Sampled>> {
        let Some(Rollouts { max_new_tokens, temperature, .. }) = s.rollouts() else { return Ok(None) };
        let replaced = "train.objective: the adapter replaces modules of the base model, so that the model without it is no teacher: merge it first";
        let is_base = matches!(trainable, Trainable::Lora(lora) if lora.replaced.is_empty());
        ensure!(is_base, Error::setting("train.objective", replaced));
        let config = &model.config;
        for shard in shards.into_iter().flatten() {
            has_room(shard, max_new_tokens, (s.batch_tokens, config.max_position_embeddings))?;
        }
        let tokenizer = Tokenizer::load(path)?;
        let eos = end_tokens(&tokenizer, config);
        let params =
            SamplingParams { max_new_tokens, temperature, eos, seed: s.seed, ..SamplingParams::default() };
        Ok(Some(Sampled { tokenizer, params }))
    }

    /// What the trainer needs, with the base model's answers to held-out questions, of which each rank draws a share.
    ///
    /// # Errors
    /// A failing device; logits that are not finite.
    pub fn on_policy(
        &self,
        model: &Transformer,
        validation: Option<&TokenShard>,
        how: (&Team, bool),
    ) -> Result<OnPolicy<'_>> {
        let Some(shard) = validation else { return Ok(OnPolicy { answers: self, held_out: vec![] }) };
        let question = |unit: usize| {
            let first = shard.unit(unit).start;
            Question { id: format!("held-out/{}", shard.note(first)), tokens: shard.document(first).tokens }
        };
        let questions: Vec<Question> = (0..shard.units()).map(question).collect();
        let own = questions.len().div_ceil(how.0.world().size());
        let mut progress = Progress::new("answers to held-out questions", own);
        let held_out = drawn(self, model.into(), &questions, how, &mut || progress.advance(1))?;
        progress.finish();
        Ok(OnPolicy { answers: self, held_out })
    }
}

impl Answers for Sampled {
    fn answers(
        &self,
        model: Adapted,
        questions: &[Question],
        on_done: &mut dyn FnMut(),
    ) -> Result<Vec<Answer>> {
        let request = |q: &Question| Request { id: q.id.clone(), tokens: q.tokens.clone() };
        let requests: Vec<Request> = questions.iter().map(request).collect();
        let mut engine = Engine::new(model, EngineOptions::default())?;
        let done = engine.generate(&requests, &self.params, &mut |_, _| on_done())?;
        let answer = |row: Generated| {
            let text = self.tokenizer.decode(&row.tokens)?;
            let alarm = !has_content(&text) || is_loop(&text);
            Ok(Answer { ended: row.finish == Finish::Stop, alarm, tokens: row.tokens })
        };
        done.into_iter().map(answer).collect()
    }
}

/// Both prompts of every question fit a micro-batch with an answer of full length, and each with it the model's context.
fn has_room(shard: &TokenShard, answer: usize, (batch_tokens, context): (usize, usize)) -> Result<()> {
    for unit in 0..shard.units() {
        let (both, path) = (shard.unit_len(unit), shard.path().display());
        let longest = shard.unit(unit).map(|d| shard.document_len(d)).max().unwrap_or(0);
        let note = shard.note(shard.unit(unit).start);
        let long = || {
            format!(
                "{path}: question {note}: its prompts have {both} tokens and an answer up to {answer}, more than batch-tokens = {batch_tokens}: raise it, or lower \
                 max-new-tokens, or max-length when packing"
            )
        };
        ensure!(both + answer <= batch_tokens, Error::setting("train.batch-tokens", long()));
        let long = || {
            format!(
                "{path}: question {note}: a prompt of {longest} tokens and an answer of up to {answer} are more than the {context} of the model: lower max-new-tokens, or \
                 max-length when packing"
            )
        };
        ensure!(longest + answer <= context, Error::setting("train.max-new-tokens", long()));
    }
    Ok(())
}
