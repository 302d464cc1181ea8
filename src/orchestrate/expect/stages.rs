//! The stages one by one: what each has to do, how long its model takes for it, and the memory of that model.
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::{super::check::training_memory, Expected, Time, facts::Facts};
use crate::{
    bench::{Runs, calibrate::Rates, ceilings},
    data::{text_file::read_lines, token_shard::TokenShard},
    device::DeviceChoice,
    eval::{
        self,
        tasks::{Ask, Item},
    },
    infer::session::Room,
    models::{
        m2m100::{M2m100Config, runner_bytes},
        weights::resolve,
        xlm_roberta::{Encoder, XlmRobertaConfig},
    },
    pipeline::{rows::path_for, work_dir::TOKENS},
    qe::cometkiwi,
    recipe::{
        assemble::Variant,
        eval::{EvalSettings, EvalTask},
        generate::GenerateEngine,
        score::ScoreEngine,
        translate::TranslateEngine,
    },
    stages::train,
    tensor::DType,
};

/// Share of the rows that a filter may leave, at least.
const KEPT: f64 = 0.3;
/// Tokens that a template puts around a text, about.
const TEMPLATE: f64 = 16.0;
/// How far below our best product whole models of others stay, at most.
const SLOWEST: f64 = 5.0;

/// What is known of the stages before a training.
#[derive(Default)]
pub(super) struct Before {
    /// Whose examples it learns.
    pub variant: Option<Variant>,
    /// The folder of its token shards, where they are there already.
    pub packed: Option<PathBuf>,
}

/// What a planned stage of the recipe, which has this label, is expected to take.
pub(super) fn expected(f: &Facts, label: &str, before: &Before) -> Result<Expected> {
    let (name, of) = label.split_once(' ').unwrap_or((label, ""));
    match name.split('-').next().unwrap_or_default() {
        "generate" => Ok(generate(f)),
        "translate" => translate(f),
        "score" => score(f),
        "train" => training(f, before),
        "eval" => task(f, of),
        _ => Ok(Expected::of(Time::Short, f.rows.map_or(String::new(), |n| format!("{n} rows at most")))),
    }
}

/// Seconds with the model's rates, or why there are none.
fn timed(f: &Facts, work: String, seconds: impl Fn(&Rates) -> [f64; 2]) -> Expected {
    match &f.rates {
        Ok(rates) => {
            let [low, high] = seconds(rates);
            Expected::about(low, high, work)
        }
        Err(why) => Expected::of(Time::NotKnown(why.clone()), work),
    }
}

fn not_counted(what: &str) -> Expected {
    Expected::of(Time::NotKnown(format!("{what} are not counted before, the files are too long")), "")
}

/// Seconds where each of several devices takes a share of the rows.
fn shared(f: &Facts, seconds: [f64; 2]) -> [f64; 2] {
    seconds.map(|s| s / f.placement.device.each().len() as f64)
}

/// Work of a model behind an endpoint.
fn elsewhere(does: &str, work: String) -> Expected {
    Expected::of(Time::NotKnown(format!("a model behind an endpoint {does}")), work)
}

/// Seconds to read `prompt` tokens and write [at least, at most] `reply` tokens in each of `rows` rows, `together` of them at a time.
fn replies(r: &Rates, rows: f64, prompt: f64, reply: [f64; 2], together: usize) -> [f64; 2] {
    let steps = |reply: f64| (rows / together as f64).max(1.0) * reply;
    [0, 1].map(|i| rows * prompt * r.forward + steps(reply[i]) * r.step[i])
}

/// The model with a session for rows of `longest` tokens.
fn session(
    f: &Facts,
    rows: usize,
    longest: usize,
    prompts: usize,
    batch_tokens: usize,
) -> Vec<(String, usize)> {
    let longest = longest.min(f.config.max_position_embeddings);
    let room = Room {
        rows,
        slots: rows * longest,
        longest,
        prompt_tokens: prompts.min(batch_tokens).max(rows),
        listed: 0,
    };
    let acts = if f.placement.device == DeviceChoice::Cpu { DType::F32 } else { f.placement.dtype };
    let mut all = vec![("weights".to_string(), f.weights)];
    let spec = f.config.spec();
    all.extend(spec.iter().flat_map(|spec| room.bytes(spec, acts)).map(|(name, b)| (name.to_string(), b)));
    all
}

fn generate(f: &Facts) -> Expected {
    let (g, Some(rows)) = (&f.recipe.generate, f.rows) else { return not_counted("questions") };
    let together = g.batch_rows.clamp(1, rows.max(1));
    let (prompts, limit) = ((rows as f64 * f.prompt) as usize, f.limit);
    let work = format!("{rows} questions of about {:.0} tokens, answers of up to {limit}", f.prompt);
    if g.engine == GenerateEngine::Openai {
        return elsewhere("answers", work);
    }
    let all = (rows * g.samples) as f64;
    timed(f, work, |r| shared(f, replies(r, all, f.prompt, f.answer, together))).taking(session(
        f,
        together,
        f.longest + limit,
        prompts,
        g.batch_tokens.max(f.longest),
    ))
}

fn translate(f: &Facts) -> Result<Expected> {
    let s = &f.recipe.translate;
    let (languages, Some(rows)) = (f.recipe.target_languages.len(), f.rows) else {
        return Ok(not_counted("questions"));
    };
    let texts = (2 * rows * languages) as f64;
    let work = format!("{rows} questions with answers into {languages} language(s)");
    Ok(match s.engine {
        TranslateEngine::Dictionary | TranslateEngine::File => Expected::of(Time::Short, work),
        TranslateEngine::Command => Expected::of(Time::NotKnown("another program translates".into()), work),
        TranslateEngine::Openai => elsewhere("translates", work),
        TranslateEngine::Itself => {
            let together = f.recipe.generate.batch_rows;
            timed(f, work, |r| shared(f, replies(r, texts, f.prompt, f.answer, together)))
        }
        TranslateEngine::Nllb => {
            let c = M2m100Config::from_dir(&resolve(s.translator.as_deref().unwrap_or_default())?)?;
            let (d, beams) = (c.d_model as f64, s.num_beams.unwrap_or(4));
            let tokens = texts * (f.example() / 2.0);
            let encoder = c.encoder_layers as f64 * (4.0 * d * d + 2.0 * d * c.encoder_ffn_dim as f64);
            let decoder = c.decoder_layers as f64 * (8.0 * d * d + 2.0 * d * c.decoder_ffn_dim as f64)
                + d * c.vocab_size as f64;
            let flop = 2.0 * tokens * (encoder + decoder * beams as f64);
            let sizes = [s.batch_tokens, s.batch_rows, s.max_length.unwrap_or(200)];
            let dtype = f.placement.dtype;
            let scratch = runner_bytes(&c, sizes, DType::F32) + s.batch_rows * c.vocab_size * 4;
            by_products(f, work, flop)?.taking(vec![
                ("weights".into(), c.parameters() * dtype.bytes()),
                ("scratch and caches".into(), scratch),
            ])
        }
    })
}

fn score(f: &Facts) -> Result<Expected> {
    let s = &f.recipe.score;
    let (languages, Some(rows)) = (f.recipe.target_languages.len(), f.rows) else {
        return Ok(not_counted("questions"));
    };
    let work = format!("{rows} questions with answers in {languages} language(s)");
    let config = match s.engine {
        ScoreEngine::Builtin | ScoreEngine::File => return Ok(Expected::of(Time::Short, work)),
        ScoreEngine::Command => {
            return Ok(Expected::of(Time::NotKnown("another program scores".into()), work));
        }
        ScoreEngine::Openai => return Ok(elsewhere("judges", work)),
        ScoreEngine::Cometkiwi => {
            let name = s.model.as_deref().unwrap_or(cometkiwi::PUBLISHED);
            XlmRobertaConfig::from_value(cometkiwi::Files::find(name, s.encoder.as_deref())?.encoder)?
        }
        ScoreEngine::Similarity => {
            XlmRobertaConfig::from_dir(&resolve(s.model.as_deref().unwrap_or_default())?)?
        }
    };
    let (c, ffn) = (config.hidden_size as f64, config.intermediate_size as f64);
    let tokens = (2 * rows * languages) as f64 * f.example();
    let flop = 2.0 * tokens * config.num_hidden_layers as f64 * (4.0 * c * c + 2.0 * c * ffn);
    let scratch = Encoder::bytes(&config, s.batch_tokens, DType::F32);
    let weights = config.parameters() * f.placement.dtype.bytes();
    Ok(by_products(f, work, flop)?.taking(vec![("weights".into(), weights), ("scratch".into(), scratch)]))
}

/// Work of another model, by the rate of our best product.
fn by_products(f: &Facts, work: String, flop: f64) -> Result<Expected> {
    let device = f.placement.device.first().open()?;
    if f.rates.is_err() {
        return Ok(timed(f, work, |_| [0.0; 2]));
    }
    let rate = ceilings::product(&device, f.placement.dtype, Runs { warmup: 1, runs: 2 })?.median() * 1e9;
    let [low, high] = shared(f, [flop / rate, flop / rate * SLOWEST]);
    Ok(Expected::about(low, high, work))
}

fn training(f: &Facts, before: &Before) -> Result<Expected> {
    let (r, s) = (f.recipe, &f.recipe.train);
    let shard = before.packed.as_ref().map(|dir| TokenShard::open(&dir.join(TOKENS[0].1))).transpose()?;
    let Some((documents, tokens)) = (match &shard {
        Some(shard) => {
            Some(([shard.units() as f64; 2], [shard.tokens() as f64 / shard.units().max(1) as f64; 2]))
        }
        None => examples(f, before.variant)?,
    }) else {
        return Ok(not_counted("examples"));
    };
    let amounts = [0, 1].map(|i| train::Amount::of(s, documents[i], tokens[i]));
    let [least, most] = amounts.map(|a| a.steps);
    let steps = if least == most { format!("{most:.0}") } else { format!("{least:.0} to {most:.0}") };
    let early = if s.patience > 0 { ", fewer if it stops early" } else { "" };
    // Sentences that are aligned come in batches of their own.
    let alone = shard.filter(|_| s.aligning().is_none());
    let room = alone.map_or(s.batch_tokens, |shard| shard.tokens().min(s.batch_tokens));
    let each = (tokens[0] + tokens[1]) / 2.0;
    let work = format!("{steps} steps{early}, documents of about {each:.0} tokens, batches of {room}");
    let memory = training_memory(r, f.placement, room)?;
    if s.rollouts().is_some() {
        let drawn = "the model answers questions between its steps; an earlier run tells".into();
        return Ok(Expected::of(Time::NotKnown(drawn), work).taking(memory));
    }
    Ok(timed(f, work, |rates| [amounts[0].seconds(rates)[0], amounts[1].seconds(rates)[1]]).taking(memory))
}

/// Examples that a training will have and the tokens of each, at least and at most.
fn examples(f: &Facts, variant: Option<Variant>) -> Result<Option<([f64; 2], [f64; 2])>> {
    let r = f.recipe;
    if let Some(path) = &r.examples {
        let Ok(lines) = read_lines(path) else { return Ok(None) };
        let bytes: usize = lines.iter().map(String::len).sum();
        // JSON's own characters are some of them.
        let tokens = bytes as f64 / f.bytes / lines.len().max(1) as f64;
        return Ok(Some(([lines.len() as f64; 2], [tokens * 0.5, tokens])));
    }
    let Some(rows) = f.rows else { return Ok(None) };
    let languages = r.target_languages.len() as f64;
    let taught = r.train.objective.rows().has_teacher();
    // Of the pairs T>T alone, each with its teacher's document.
    let pairs = if taught { languages } else { r.assemble.pairs.len() as f64 * languages };
    let whole = matches!(variant, Some(Variant::Sdrrl | Variant::Gold));
    let of_row = if whole { [KEPT * pairs, pairs] } else { [KEPT, 1.0 + languages] };
    let all = of_row.map(|n| n * rows as f64 * (1.0 - r.assemble.validation));
    let mut parallel = 0.0;
    let takes = r.assemble.use_parallel && (whole || variant.is_some() && r.assemble.parallel_in_baselines);
    if takes && !taught && r.parallel.file.is_some() {
        for target in &r.target_languages {
            let path = path_for(&r.parallel.file, "parallel.file", &r.source_language, target)?;
            let lines = read_lines(&path).map_or(0, |lines| lines.len());
            parallel += 2.0 * if r.parallel.limit > 0 { lines.min(r.parallel.limit) } else { lines } as f64;
        }
    }
    // Instructions such as the answer's language come on top.
    let tokens = [f.prompt + f.answer[0], f.prompt + f.answer[1] + TEMPLATE / 2.0];
    let documents = if taught { 3.0 } else { 1.0 };
    Ok(Some((all.map(|n| n + parallel), tokens.map(|n| n * documents))))
}

/// A task of an evaluation.
fn task(f: &Facts, name: &str) -> Result<Expected> {
    let settings = &f.recipe.eval;
    // In a matrix the arm stands before it.
    let ends = |t: &&EvalTask| {
        name.strip_suffix(t.name.as_str()).is_some_and(|arm| arm.is_empty() || arm.ends_with(' '))
    };
    let task = settings.tasks.iter().filter(ends).max_by_key(|t| t.name.len());
    let task = task.with_context(|| format!("{name} is no task of the recipe"))?;
    let one = EvalSettings { tasks: vec![task.clone()], ..settings.clone() };
    let items = eval::run::check(&one)?.into_iter().next().context("the task has no rows")?;
    let rows = items.len();
    let tokens = |text: &str| text.len() as f64 / f.bytes;
    let prompts: f64 = items.iter().map(|i| tokens(&i.sample.prompt) + TEMPLATE).sum();
    let scored: f64 = items.iter().map(|i| scored(i, &tokens)).sum();
    let reply = reply(task, &items, &tokens);
    let work = match reply[1] > 0.0 {
        true => {
            format!("{rows} rows, {:.0} tokens to read, replies of up to {}", prompts, task.max_new_tokens)
        }
        false => format!("{rows} rows, {:.0} tokens to score", prompts + scored),
    };
    let longest = items.iter().map(|i| tokens(&i.sample.prompt) + TEMPLATE).fold(0.0, f64::max) as usize;
    let together = settings.batch_rows.clamp(1, rows.max(1));
    let slots = longest + if reply[1] > 0.0 { task.max_new_tokens } else { 0 };
    let memory = session(f, together, slots, prompts as usize, settings.batch_tokens.max(longest));
    let seconds = |r: &Rates| {
        let score = (prompts + scored) * r.forward;
        let alone = match reply[1] > 0.0 {
            true => replies(r, rows as f64, prompts / rows as f64, reply, together),
            false => [score, score],
        };
        shared(f, alone)
    };
    Ok(timed(f, work, seconds).taking(memory))
}

/// Tokens of the continuations that are scored behind an item's prompt.
fn scored(item: &Item, tokens: &dyn Fn(&str) -> f64) -> f64 {
    match &item.ask {
        Ask::Choose(choices) => choices.iter().map(|c| tokens(c)).sum(),
        _ => 0.0,
    }
}

/// Tokens of a reply, at least and at most; 0 where texts are scored. The expected ones are a hint.
fn reply(task: &EvalTask, items: &[Item], tokens: &dyn Fn(&str) -> f64) -> [f64; 2] {
    if !items.iter().any(|i| matches!(i.ask, Ask::Reply | Ask::Letter(_))) {
        return [0.0; 2];
    }
    let most = task.max_new_tokens.max(1) as f64;
    let targets: Vec<f64> =
        items.iter().filter_map(|i| i.sample.targets.first()).map(|t| tokens(t)).collect();
    let usual =
        if targets.is_empty() { most / 3.0 } else { targets.iter().sum::<f64>() / targets.len() as f64 };
    [(usual / 2.0).clamp(1.0, most), (usual * 4.0).clamp(8.0, most.max(8.0))]
}
