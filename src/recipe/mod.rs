//! The TOML recipe: one settings struct per stage, the same structs that the command line flattens in.
pub mod ablate;
pub mod aliases;
pub mod aligning;
pub mod assemble;
pub mod code_switch;
pub mod description;
pub mod eval;
pub mod filter;
pub mod generate;
pub mod objective;
pub mod pack;
pub mod parallel;
pub mod ranges;
pub mod reduce;
pub mod remote;
pub mod score;
pub mod source;
pub mod task_languages;
pub mod train;
pub mod translate;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use assemble::{AssembleSettings, PairType, Variant};
use code_switch::CodeSwitchSettings;
use eval::EvalSettings;
use filter::FilterSettings;
use generate::GenerateSettings;
use objective::Objective;
use pack::PackSettings;
use parallel::ParallelSettings;
use remote::RemoteSettings;
use score::ScoreSettings;
use train::TrainSettings;
use translate::TranslateSettings;

use crate::{error::Error, pipeline::rows::path_for};

/// A run of the method: what to teach which model, from which files, and how it is evaluated. Paths are relative to the current folder or, where nothing
/// is there, to the recipe's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Recipe {
    /// Name of the run.
    pub name: String,
    /// Folder for all output of the run, relative to the current folder.
    pub work: PathBuf,
    /// The model to train: a Hugging Face directory, a .gguf file, or a name in the local Hugging Face cache.
    pub model: String,
    /// Data type of its weights in memory: f32 or bf16 [default: bf16 on a GPU, else f32].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<String>,
    /// How its matrices are kept in memory: as `dtype` says, or `stored`, as the quantised blocks of a .gguf file or bitsandbytes' NF4.
    #[serde(default = "as_dtype")]
    pub base_dtype: String,
    /// What products over such blocks read of their input: f32, or int8 (on the CPU; training reads f32 in any case).
    #[serde(default = "as_f32")]
    pub activations: String,
    /// Device to run on: cpu, cuda, cuda:N, several such as cuda:0-3 or cuda:0,2-3 (each takes a share of the rows; training runs a process on each), or emulated.
    #[serde(default = "cpu")]
    pub device: String,
    /// The language that the model already knows well.
    #[serde(default = "english")]
    pub source_language: String,
    /// The languages that it should learn.
    #[serde(default)]
    pub target_languages: Vec<String>,
    /// Training sets to make, train on and compare.
    #[serde(default = "all_variants")]
    pub variants: Vec<Variant>,
    /// Question files.
    #[serde(default)]
    pub questions: Vec<PathBuf>,
    /// Ready-made examples instead of questions: the run only packs, trains and evaluates.
    #[serde(default)]
    pub examples: Option<PathBuf>,
    /// Chat template of every stage that does not set its own.
    #[serde(default)]
    pub template: Option<String>,
    /// System prompt of every stage that does not set its own.
    #[serde(default)]
    pub system: Option<String>,
    /// Seed of every stage that does not set its own.
    #[serde(default)]
    pub seed: Option<u64>,
    /// Rows per shard.
    #[serde(default = "rows_per_shard")]
    pub rows_per_shard: usize,
    /// The endpoint of every stage whose `engine` is `openai` and that has no such table of its own (`[generate.remote]`, `[translate.remote]`,
    /// `[score.remote]`).
    #[serde(default)]
    pub remote: RemoteSettings,
    /// Settings of the stage.
    #[serde(default)]
    pub generate: GenerateSettings,
    /// Settings of the stage.
    #[serde(default)]
    pub translate: TranslateSettings,
    /// Settings of the stage.
    #[serde(default)]
    pub score: ScoreSettings,
    /// Settings of the stage.
    #[serde(default)]
    pub filter: FilterSettings,
    /// Settings of the stage.
    #[serde(default)]
    pub code_switch: CodeSwitchSettings,
    /// Settings of the stage; without a file no parallel corpus is used.
    #[serde(default)]
    pub parallel: ParallelSettings,
    /// Settings of the stage; `variant` comes from `variants`.
    #[serde(default)]
    pub assemble: AssembleSettings,
    /// Settings of the stage.
    #[serde(default)]
    pub pack: PackSettings,
    /// Settings of the stage.
    #[serde(default)]
    pub train: TrainSettings,
    /// Settings of the stage.
    #[serde(default)]
    pub eval: EvalSettings,
}

fn as_f32() -> String {
    "f32".into()
}
fn as_dtype() -> String {
    "dtype".into()
}
fn cpu() -> String {
    "cpu".into()
}
fn english() -> String {
    "en".into()
}
fn rows_per_shard() -> usize {
    1000
}
fn all_variants() -> Vec<Variant> {
    vec![Variant::Sdrrl, Variant::Sft, Variant::TranslateThenSft]
}

/// Sections that have a key of their own for what the top of a recipe says once for all.
const SHARED: [(&str, &[&str]); 3] = [
    ("template", &["generate", "translate", "pack"]),
    ("system", &["generate", "pack"]),
    ("seed", &["generate", "code-switch", "parallel", "assemble", "train"]),
];

impl Recipe {
    /// Reads a recipe and applies `--set key=value` overrides in order. Errors name the line and the nearest known key.
    pub fn read(path: &Path, overrides: &[String]) -> Result<Recipe> {
        // Once for messages with line numbers, once with the shared values spread out.
        source::read::<Recipe>(path, overrides)?;
        let mut table: Table = source::read(path, overrides)?;
        for (key, sections) in SHARED {
            let Some(value) = table.get(key).cloned() else { continue };
            for section in sections {
                let entry = table.entry(*section).or_insert_with(|| Value::Table(Table::new()));
                if let Value::Table(t) = entry {
                    t.entry(key).or_insert_with(|| value.clone());
                }
            }
        }
        // Only where it is used: it is no part of what another engine makes.
        if let Some(remote) = table.get("remote").cloned() {
            for section in ["generate", "translate", "score"] {
                if let Some(Value::Table(t)) = table.get_mut(section)
                    && t.get("engine").and_then(Value::as_str) == Some("openai")
                {
                    t.entry("remote").or_insert_with(|| remote.clone());
                }
            }
        }
        let mut recipe: Recipe = source::parse(&toml::to_string(&table)?, &path.display().to_string(), &[])?;
        task_languages::expand(&mut recipe.eval.tasks)
            .with_context(|| format!("recipe {}", path.display()))?;
        recipe.check(path)?;
        recipe.find_near(path.parent().unwrap_or(Path::new("")));
        Ok(recipe)
    }

    /// Files that are not where the current folder would have them are looked for beside the recipe.
    fn find_near(&mut self, dir: &Path) {
        let target = self.target_languages.first().cloned().unwrap_or_default();
        let source = self.source_language.clone();
        let there = |path: &Path| {
            let named = path_for(&Some(path.into()), "", &source, &target);
            named.is_ok_and(|path| path.exists())
        };
        let near = |path: &mut PathBuf| {
            let other = dir.join(&*path);
            if !there(path) && there(&other) {
                *path = other;
            }
        };
        let near_name = |name: &mut String| {
            let mut path = PathBuf::from(&*name);
            near(&mut path);
            *name = path.to_string_lossy().into_owned();
        };
        self.questions.iter_mut().for_each(near);
        let files = [
            &mut self.examples,
            &mut self.translate.file,
            &mut self.score.file,
            &mut self.code_switch.dictionary,
            &mut self.parallel.file,
            &mut self.parallel.target_file,
            &mut self.train.guard_file,
            &mut self.train.alignment_file,
            &mut self.train.alignment_target_file,
        ];
        files.into_iter().flatten().for_each(near);
        for task in &mut self.eval.tasks {
            near(&mut task.file);
            let files = [
                &mut task.reference,
                &mut task.few_shot_file,
                &mut task.few_shot_reference,
                &mut task.dictionary,
            ];
            files.into_iter().flatten().for_each(near);
        }
        near_name(&mut self.model);
        [&mut self.translate.translator, &mut self.score.model, &mut self.score.encoder]
            .into_iter()
            .flatten()
            .for_each(near_name);
        for template in [&mut self.generate.template, &mut self.translate.template, &mut self.pack.template] {
            if template.ends_with(".jinja") {
                near_name(template);
            }
        }
    }

    fn check(&self, path: &Path) -> Result<()> {
        let path = path.display();
        if self.examples.is_some() {
            ensure!(self.questions.is_empty(), "recipe {path}: give `questions` or `examples`, not both");
            return Ok(());
        }
        let objective = self.train.objective;
        let unmade = || {
            format!(
                "recipe {path}: train.objective = \"{}\" learns from preferences, which the method's stages do not make: give a file of them as `examples` instead \
                 of `questions`",
                objective.name()
            )
        };
        let made = matches!(objective, Objective::Sft | Objective::OnPolicy | Objective::TopK);
        ensure!(made, Error::setting("train.objective", unmade()));
        ensure!(
            !self.questions.is_empty(),
            "recipe {path}: `questions` is missing: name at least one JSONL file"
        );
        ensure!(!self.target_languages.is_empty(), "recipe {path}: `target-languages` is missing");
        ensure!(!self.variants.is_empty(), "recipe {path}: `variants` is empty");
        if objective.rows().has_teacher() { self.check_taught() } else { Ok(()) }
    }

    /// The model's questions, and what its teacher is shown, have to be made.
    fn check_taught(&self) -> Result<()> {
        let objective = self.train.objective.name();
        let other = self.variants.iter().find(|v| !matches!(v, Variant::Sdrrl | Variant::Gold));
        if let Some(variant) = other {
            let message = format!(
                "train.objective = \"{objective}\" learns from questions in the target languages with an answer in the source language, which variant {} does not make: \
                 variants = [\"sdrrl\"]",
                variant.name()
            );
            bail!(Error::setting("variants", message));
        }
        let needed = [PairType::SourceSource, PairType::TargetTarget];
        let missing = needed.into_iter().find(|pair| !self.assemble.pairs.contains(pair));
        let message = || {
            let name = missing.map_or("", |pair| pair.name());
            format!(
                "assemble.pairs has no {name}, which train.objective = \"{objective}\" needs: S>S is what the teacher is shown, T>T what is asked"
            )
        };
        ensure!(missing.is_none(), Error::setting("assemble.pairs", message()));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_values_reach_the_sections_that_do_not_say_otherwise() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.toml");
        let text = "name = \"n\"\nwork = \"w\"\nmodel = \"m\"\nquestions = [\"q\"]\ntarget-languages = [\"es\"]\nseed = 7\n\
                    template = \"alpaca\"\n[train]\nseed = 9\n";
        std::fs::write(&path, text).unwrap();
        let r = Recipe::read(&path, &["pack.template=plain".into()]).unwrap();
        assert_eq!((r.train.seed, r.assemble.seed, r.parallel.seed), (9, 7, 7));
        assert_eq!((r.pack.template.as_str(), r.generate.template.as_str()), ("plain", "alpaca"));
        std::fs::write(&path, text.replace("questions", "question")).unwrap();
        let error = format!("{:#}", Recipe::read(&path, &[]).unwrap_err());
        assert!(error.contains("line 4") && error.contains("did you mean `questions`?"), "{error}");
    }
}
