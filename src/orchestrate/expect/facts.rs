//! What is counted and measured of a recipe before its stages.
use std::collections::BTreeMap;

use anyhow::Result;

use crate::{
    bench::calibrate::{self, Rates},
    data::{conversation::Prompt, record::Row, template::ChatTemplate, tokenizer::Tokenizer},
    infer::generation_config::GenerationConfig,
    models::{
        transformer::config::Config,
        weights::{WeightSource, resolve},
    },
    pipeline::placement::Placement,
    recipe::{Recipe, train::Method},
    report::out,
    stages::generate,
};

use super::super::check::is_short;

/// Rows that are tokenised, evenly from all.
const SAMPLE: usize = 48;

/// Counted and measured.
pub(super) struct Facts<'a> {
    pub recipe: &'a Recipe,
    pub placement: Placement,
    pub config: Config,
    /// Of the model's weights, as they will be in memory.
    pub weights: usize,
    /// Questions; `None`: the files are too long to be counted here.
    pub rows: Option<usize>,
    /// Tokens of a question in the template: on average, at most.
    pub prompt: f64,
    pub longest: usize,
    /// Tokens that an answer will have: at least, at most, on average.
    pub answer: [f64; 2],
    /// Tokens of an answer at most, by the settings.
    pub limit: usize,
    /// Bytes of text that a token stands for.
    pub bytes: f64,
    /// What the model does a second, or why it was not measured.
    pub rates: Result<Rates, String>,
    tokenizer: Tokenizer,
}

impl<'a> Facts<'a> {
    /// Of `recipe`; `known` are rates that were measured before.
    pub fn gather(
        recipe: &'a Recipe,
        placement: Placement,
        known: &mut BTreeMap<String, Result<Rates, String>>,
    ) -> Result<Facts<'a>> {
        let r = recipe;
        let path = resolve(&r.model)?;
        let tokenizer = Tokenizer::load(&path)?;
        let (config, source) = match r.train.method {
            Method::Scratch => (Config::from_dir(&path)?, None),
            _ => WeightSource::open(&path).map(|(config, source)| (config, Some(source)))?,
        };
        let spec = config.spec()?;
        let weights = match &source {
            Some(source) => {
                source.bytes_loaded(&spec, placement.dtype.try_into()?, placement.keeps_blocks())?
            }
            None => spec.parameters() * placement.dtype.bytes(),
        };
        let rows = questions(r)?;
        let mut facts = Facts {
            recipe,
            placement,
            weights,
            rows: rows.as_ref().map(Vec::len),
            prompt: 0.0,
            longest: 0,
            answer: [0.0; 2],
            limit: 0,
            bytes: 4.0,
            rates: Err(String::new()),
            tokenizer,
            config,
        };
        facts.sample(rows.as_deref().unwrap_or_default())?;
        let length = facts.example() as usize;
        let (rank, together) = (r.train.lora_rank.max(1), r.generate.batch_rows.max(1));
        let key = format!("{path:?} {placement} {rank} {together} {length}");
        let measure = || {
            let found = calibrate::decoder(&facts.config, placement, length, rank, together);
            found.map_err(|e| format!("the model could not be measured: {e:#}"))
        };
        facts.rates = known.entry(key).or_insert_with(measure).clone();
        Ok(facts)
    }

    /// Tokenises some of the questions and of the data set's answers.
    fn sample(&mut self, rows: &[Row]) -> Result<()> {
        let g = &self.recipe.generate;
        let template = ChatTemplate::load(&g.template, &self.tokenizer)?;
        let (mut prompts, mut answers, mut bytes, mut tokens) = (vec![], vec![], 0, 0);
        for row in rows.iter().step_by(rows.len().div_ceil(SAMPLE).max(1)) {
            let prompt = Prompt { system: g.system.as_deref(), ..row.prompt() };
            prompts.push(template.encode_prompt(&self.tokenizer, &prompt)?.len());
            let text = format!("{} {}", row.instruction, row.output);
            (bytes, tokens) = (bytes + text.len(), tokens + self.tokens(&text)?);
            if !row.output.is_empty() {
                answers.push(self.tokens(&row.output)?);
            }
        }
        let mean = |all: &[usize], or: f64| match all.len() {
            0 => or,
            n => all.iter().sum::<usize>() as f64 / n as f64,
        };
        self.prompt = mean(&prompts, 64.0);
        self.longest = prompts.iter().copied().max().unwrap_or(64);
        if tokens > 0 {
            self.bytes = bytes as f64 / tokens as f64;
        }
        let given = GenerationConfig::from_model(&resolve(&self.recipe.model)?)?;
        self.limit = g.max_new_tokens.or(given.max_new_tokens).unwrap_or(256);
        let most = self.limit.max(1) as f64;
        // Half to twice as long as the data set's own, where it has any.
        let usual = mean(&answers, most / 3.0);
        self.answer = [(usual / 2.0).clamp(1.0, most), (usual * 2.0).min(most)];
        Ok(())
    }

    /// Tokens of a text.
    pub fn tokens(&self, text: &str) -> Result<usize> {
        Ok(self.tokenizer.encode(text, false)?.len())
    }

    /// Tokens of a question with its answer, about.
    pub fn example(&self) -> f64 {
        self.prompt + (self.answer[0] * self.answer[1]).sqrt()
    }
}

/// The questions, where the files are short.
fn questions(r: &Recipe) -> Result<Option<Vec<Row>>> {
    if r.questions.is_empty() || !r.questions.iter().all(|path| is_short(path)) {
        return Ok(None);
    }
    let read = || generate::read_questions(&r.questions, &r.source_language, &r.generate);
    Ok(Some(out::silently(read)?.0))
}
