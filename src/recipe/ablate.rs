//! A matrix of runs over one recipe: what each part of the method is worth.
use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use toml::Value;

use super::{Recipe, source};

/// One run: the base recipe with changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Arm {
    /// Unique; letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// What it is, for people.
    #[serde(default)]
    pub title: Option<String>,
    /// Changes to the recipe, as `--set` takes them.
    #[serde(default)]
    pub set: Vec<String>,
}

/// One setting at several values, one arm per value, drawn as a curve.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Sweep {
    /// Begins the arms' names.
    pub name: String,
    /// The setting, e.g. `filter.tau`.
    pub key: String,
    /// What stands under its axis.
    #[serde(default)]
    pub title: Option<String>,
    /// Its values.
    pub values: Vec<f64>,
    /// Further changes to the recipe.
    #[serde(default)]
    pub set: Vec<String>,
}

/// The file of `sdrrl ablate`. Paths are relative to the current directory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Ablations {
    /// What the matrix is called.
    pub name: String,
    /// Folder for everything that it writes.
    pub work: PathBuf,
    /// The recipe that every arm changes.
    pub recipe: PathBuf,
    /// Changes to the recipe in every arm.
    #[serde(default)]
    pub set: Vec<String>,
    /// Optimizer steps of every arm, however many documents it trains on, unless its early stopping ends it: arms then differ in what they learn, not in how much.
    #[serde(default)]
    pub steps: Option<u64>,
    /// Seeds of training (the adapters' initial values and the order of documents): every arm trains once with each, and intervals are over test rows and seeds.
    /// Without them an arm trains once, with its recipe's seed.
    #[serde(default)]
    pub seeds: Vec<u64>,
    /// The arm that the others are compared with; the first where it is absent.
    #[serde(default)]
    pub reference: Option<String>,
    /// Single runs.
    #[serde(default)]
    pub arms: Vec<Arm>,
    /// Series of runs.
    #[serde(default)]
    pub sweeps: Vec<Sweep>,
}

/// An arm with its whole recipe.
#[derive(Clone, Debug, PartialEq)]
pub struct ResolvedArm {
    /// Name, title, changes.
    pub arm: Arm,
    /// The recipe with all changes.
    pub recipe: Recipe,
    /// Index of its sweep and the value there.
    pub sweep: Option<(usize, f64)>,
}

impl ResolvedArm {
    /// The arm with each of the seeds; itself where there are none.
    pub fn seeded(&self, seeds: &[u64]) -> Vec<(Option<u64>, Recipe)> {
        let with = |seed: &u64| {
            let mut recipe = self.recipe.clone();
            recipe.train.seed = *seed;
            (Some(*seed), recipe)
        };
        if seeds.is_empty() { vec![(None, self.recipe.clone())] } else { seeds.iter().map(with).collect() }
    }

    /// Title or name.
    pub fn title(&self) -> &str {
        self.arm.title.as_deref().unwrap_or(&self.arm.name)
    }
}

impl Ablations {
    /// Reads the file; `overrides` change it as `--set` changes a recipe.
    pub fn read(path: &Path, overrides: &[String]) -> Result<Ablations> {
        source::read(path, overrides)
    }

    /// Every arm with its recipe, the reference first. Whatever is wrong with any of them is an error here, before anything runs.
    pub fn resolve(&self, path: &Path) -> Result<Vec<ResolvedArm>> {
        let at = path.display();
        let mut planned: Vec<(Arm, Option<(usize, f64)>)> =
            self.arms.iter().map(|a| (a.clone(), None)).collect();
        for (i, sweep) in self.sweeps.iter().enumerate() {
            ensure!(!sweep.values.is_empty(), "{at}: sweep {}: `values` is empty", sweep.name);
            for value in &sweep.values {
                let mut set = sweep.set.clone();
                set.push(format!("{}={}", sweep.key, Value::Float(*value)));
                let arm = Arm {
                    name: format!("{}-{value}", sweep.name),
                    title: Some(format!("{} = {value}", sweep.key)),
                    set,
                };
                planned.push((arm, Some((i, *value))));
            }
        }
        let different: HashSet<u64> = self.seeds.iter().copied().collect();
        ensure!(different.len() == self.seeds.len(), "{at}: a seed occurs twice in `seeds`");
        ensure!(!planned.is_empty(), "{at}: no [[arms]] and no [[sweeps]]");
        let mut names = HashSet::new();
        let mut arms = vec![];
        for (arm, sweep) in planned {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            ensure!(
                !arm.name.is_empty() && arm.name.chars().all(plain) && !arm.name.starts_with('.'),
                "{at}: arm `{}`: a name is letters, digits, - and _",
                arm.name
            );
            ensure!(names.insert(arm.name.clone()), "{at}: the arm {} occurs twice", arm.name);
            let mut set = vec!["variants=[\"sdrrl\"]".to_string()];
            if let Some(steps) = self.steps {
                // As many passes as they take.
                set.extend([format!("train.max-steps={steps}"), "train.epochs=1000000.0".into()]);
            }
            set.extend(self.set.iter().chain(&arm.set).cloned());
            let recipe =
                Recipe::read(&self.recipe, &set).with_context(|| format!("{at}: arm {}", arm.name))?;
            check(&recipe, self.steps).with_context(|| format!("{at}: arm {}", arm.name))?;
            arms.push(ResolvedArm { arm, recipe, sweep });
        }
        let first = &arms[0].arm.name;
        let reference = self.reference.as_ref().unwrap_or(first);
        let found = arms.iter().position(|a| a.arm.name == *reference);
        let index = found.with_context(|| format!("{at}: reference `{reference}` is no arm"))?;
        let reference = arms.remove(index);
        arms.insert(0, reference);
        for arm in &arms[1..] {
            ensure!(
                arm.recipe.eval == arms[0].recipe.eval,
                "{at}: arm {}: [eval] differs from that of {}: arms are compared on the same tasks",
                arm.arm.name,
                arms[0].arm.name
            );
        }
        Ok(arms)
    }
}

fn check(recipe: &Recipe, steps: Option<u64>) -> Result<()> {
    let (own, epochs) = (recipe.train.max_steps, recipe.train.epochs);
    ensure!(
        steps.is_none_or(|steps| steps > 0 && steps == own && epochs == 1e6),
        "the matrix gives every arm `steps` = {}: it must be at least 1, and arms leave train.max-steps and train.epochs alone",
        steps.unwrap_or_default()
    );
    ensure!(recipe.examples.is_none(), "the recipe has `examples`: an ablation needs the whole method");
    ensure!(
        recipe.variants.len() == 1,
        "an arm trains one variant, not {}: set variants to one of them",
        recipe.variants.len()
    );
    ensure!(!recipe.eval.tasks.is_empty(), "there are no [[eval.tasks]]: nothing could be compared");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(text: &str) -> Result<Vec<ResolvedArm>> {
        let path = Path::new("a.toml");
        source::parse::<Ablations>(text, "a.toml", &[])?.resolve(path)
    }

    const HEAD: &str = "name = \"a\"\nwork = \"w\"\nrecipe = \"recipes/quickstart.toml\"\n";

    #[test]
    fn arms_and_sweeps_become_recipes() {
        let text = format!(
            "{HEAD}reference = \"b\"\n[[arms]]\nname = \"sft\"\nset = ['variants=[\"sft\"]']\n[[arms]]\nname = \"b\"\n\
             [[sweeps]]\nname = \"tau\"\nkey = \"filter.tau\"\nvalues = [0.6, 0.95]\n"
        );
        let arms = resolve(&text).unwrap();
        let names: Vec<&str> = arms.iter().map(|a| a.arm.name.as_str()).collect();
        assert_eq!(names, ["b", "sft", "tau-0.6", "tau-0.95"]);
        assert_eq!((arms[3].recipe.filter.tau, arms[3].sweep), (Some(0.95), Some((0, 0.95))));
    }

    #[test]
    fn every_arm_takes_the_same_steps() {
        let arms = "[[arms]]\nname = \"sdrrl\"\n[[arms]]\nname = \"gold\"\nset = ['variants=[\"gold\"]']\n";
        for arm in resolve(&format!("{HEAD}steps = 70\n{arms}")).unwrap() {
            assert_eq!((arm.recipe.train.max_steps, arm.recipe.train.epochs), (70, 1e6));
        }
    }

    #[test]
    fn what_cannot_be_compared_is_refused_before_anything_runs() {
        for (rest, part) in [
            ("", "no [[arms]]"),
            ("[[arms]]\nname = \"a\"\n[[arms]]\nname = \"a\"\n", "occurs twice"),
            ("[[arms]]\nname = \"a/b\"\n", "a name is letters"),
            ("[[arms]]\nname = \"a\"\nset = [\"filter.taw=1\"]\n", "did you mean `tau`?"),
            ("[[arms]]\nname = \"a\"\nset = ['variants=[\"sft\", \"sdrrl\"]']\n", "one variant"),
            ("reference = \"x\"\n[[arms]]\nname = \"a\"\n", "`x` is no arm"),
            ("[[arms]]\nname = \"a\"\n[[arms]]\nname = \"b\"\nset = [\"eval.seed=1\"]\n", "[eval] differs"),
            (
                "steps = 5\n[[arms]]\nname = \"a\"\nset = [\"train.max-steps=6\"]\n",
                "arms leave train.max-steps",
            ),
            ("steps = 5\n[[arms]]\nname = \"a\"\nset = [\"train.epochs=1\"]\n", "arms leave train.max-steps"),
            ("seeds = [1, 2, 1]\n[[arms]]\nname = \"a\"\n", "occurs twice in `seeds`"),
            ("steps = 0\n[[arms]]\nname = \"a\"\n", "at least 1"),
            ("[[sweeps]]\nname = \"t\"\nkey = \"filter.tau\"\nvalues = []\n", "`values` is empty"),
        ] {
            let error = format!("{:#}", resolve(&format!("{HEAD}{rest}")).unwrap_err());
            assert!(error.contains(part), "{part} is not in: {error}");
        }
    }
}
