//! Numbers that settings may not have are refused before any work, and environment variables are published: no setting and no variable is left out.
use std::{any::TypeId, collections::BTreeSet, fs};

use clap::{Command, CommandFactory, Parser, builder::PossibleValue};
use sdrrl::{
    cli,
    recipe::{
        Recipe,
        eval::EvalSettings,
        ranges::{self, RANGES},
    },
    report::environment::{VARIABLES, page},
};
use toml::{Table, Value};

use crate::{
    cli::{failed, text},
    common::{program, source::files},
};

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    _command: cli::Command,
}

const RECIPE: &str =
    "name = \"n\"\nwork = \"w\"\nmodel = \"m\"\nquestions = [\"q\"]\ntarget-languages = [\"es\"]\n";

/// Options whose values are numbers, by command.
fn numeric_options() -> Vec<(String, String)> {
    let command: Command = Cli::command();
    let numbers = [
        TypeId::of::<f64>(),
        TypeId::of::<f32>(),
        TypeId::of::<u64>(),
        TypeId::of::<u32>(),
        TypeId::of::<usize>(),
        TypeId::of::<i64>(),
    ];
    let mut found = vec![];
    for sub in command.get_subcommands() {
        for argument in sub.get_arguments() {
            let is_number = numbers.iter().any(|n| argument.get_value_parser().type_id() == *n);
            if let (true, Some(long)) = (is_number, argument.get_long()) {
                found.push((sub.get_name().to_string(), long.to_string()));
            }
        }
    }
    found
}

/// Keys whose values are numbers, with their path.
fn numeric_keys(path: &str, value: &Value, out: &mut BTreeSet<(String, String)>) {
    let Value::Table(table) = value else { return };
    for (key, value) in table {
        let at = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        match value {
            Value::Integer(_) | Value::Float(_) => drop(out.insert((at, key.clone()))),
            other => numeric_keys(&at, other, out),
        }
    }
}

fn recipe_keys() -> BTreeSet<(String, String)> {
    let recipe: Recipe = toml::from_str(RECIPE).unwrap();
    let mut keys = BTreeSet::new();
    numeric_keys("", &Value::try_from(recipe).unwrap(), &mut keys);
    let task = "[[tasks]]\nname = \"t\"\nkind = \"perplexity\"\nfile = \"f\"\nlanguage = \"es\"\nlayer = 1\n";
    let eval: EvalSettings =
        toml::from_str(&format!("while-training = 1\nbatch-tokens = 7\n{task}")).unwrap();
    let Value::Table(table) = Value::try_from(eval).unwrap() else { panic!("a table") };
    numeric_keys("eval", &Value::Table(table.clone()), &mut keys);
    numeric_keys("eval.tasks", &table["tasks"].as_array().unwrap()[0], &mut keys);
    keys
}

#[test]
fn every_numeric_setting_has_a_range() {
    let options = numeric_options();
    assert!(options.len() > 50, "{}", options.len());
    for (command, option) in &options {
        assert!(ranges::of(option).is_some(), "{command} --{option} has no range");
    }
    let keys = recipe_keys();
    assert!(keys.len() > 35, "{keys:?}");
    for (path, key) in &keys {
        assert!(ranges::of(key).is_some(), "{path} has no range");
    }
    // And none without a setting.
    for range in RANGES {
        let used = options.iter().any(|(_, o)| o == range.key) || keys.iter().any(|(_, k)| k == range.key);
        assert!(used, "no setting is called {}", range.key);
    }
    let sorted: Vec<&str> = RANGES.iter().map(|r| r.key).collect();
    assert!(sorted.is_sorted(), "the table is in alphabetical order");
}

/// What no setting may be; the range decides about the rest.
fn wrong_values(key: &str) -> Vec<&'static str> {
    let range = ranges::of(key).unwrap();
    let all = ["nan", "inf", "-inf", "-1", "-0.001", "0", "1", "2", "5", "1e40", "1e13"];
    all.into_iter().filter(|x| !range.has(x.parse().unwrap())).collect()
}

#[test]
fn numbers_out_of_range_are_refused_by_name_in_every_command() {
    let integers = |command: &Command, option: &str| {
        let argument = command.get_arguments().find(|a| a.get_long() == Some(option)).unwrap();
        let of = argument.get_value_parser().type_id();
        of != TypeId::of::<f64>() && of != TypeId::of::<f32>()
    };
    let command = Cli::command();
    for (name, option) in numeric_options() {
        let sub = command.find_subcommand(&name).unwrap();
        let required = required_arguments(sub);
        for value in wrong_values(&option) {
            let words = [
                vec!["sdrrl".to_string(), name.clone()],
                required.clone(),
                vec![format!("--{option}={value}")],
            ];
            let words: Vec<String> = words.concat();
            match command.clone().try_get_matches_from(&words) {
                Ok(matches) => {
                    let error = ranges::check_arguments(&command, &matches).unwrap_err().to_string();
                    assert!(
                        error.contains(&format!("--{option} is")) && error.contains("was expected"),
                        "{error}"
                    );
                }
                Err(e) => assert!(
                    integers(sub, &option) && e.to_string().contains(&format!("--{option}")),
                    "{words:?}: {e}"
                ),
            }
        }
    }
}

/// Something for each argument that a command must have.
fn required_arguments(command: &Command) -> Vec<String> {
    let mut words = vec![];
    for argument in command.get_arguments().filter(|a| a.is_required_set()) {
        let value = argument
            .get_possible_values()
            .first()
            .map_or("x".to_string(), |v: &PossibleValue| v.get_name().into());
        words.extend(argument.get_long().map(|long| format!("--{long}")));
        words.push(value);
    }
    // Of these one of two is needed.
    match command.get_name() {
        "generate" => words.extend(["--model", "x", "--prompt", "x"].map(String::from)),
        "train" => words.extend(["--data", "x"].map(String::from)),
        _ => {}
    }
    words
}

#[test]
fn numbers_out_of_range_are_refused_by_name_in_recipes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r.toml");
    for (at, key) in recipe_keys().iter().filter(|(at, _)| !at.starts_with("eval.tasks")) {
        for value in wrong_values(key) {
            // TOML has no integers with exponents, and the key may be one.
            fs::write(&path, RECIPE).unwrap();
            let error = format!("{:#}", Recipe::read(&path, &[format!("{at}={value}")]).unwrap_err());
            let ranged = error.contains(&format!("{at} is")) && error.contains("was expected");
            assert!(ranged || error.contains("invalid"), "{at}={value}: {error}");
            let (section, key) = at.split_once('.').unwrap_or(("", at));
            let text = if section.is_empty() {
                format!("{key} = {value}\n{RECIPE}")
            } else {
                format!("{RECIPE}[{section}]\n{key} = {value}\n")
            };
            fs::write(&path, text).unwrap();
            let error = format!("{:#}", Recipe::read(&path, &[]).unwrap_err());
            assert!(error.contains("was expected") || error.contains("invalid"), "{at}={value}: {error}");
        }
    }
    let task = "[[eval.tasks]]\nname = \"t\"\nkind = \"perplexity\"\nfile = \"f\"\nlanguage = \"es\"\nmax-new-tokens = 0\n";
    fs::write(&path, format!("{RECIPE}{task}")).unwrap();
    let error = format!("{:#}", Recipe::read(&path, &[]).unwrap_err());
    assert!(error.contains("eval.tasks.max-new-tokens is 0"), "{error}");
    let table: Table = toml::from_str("[train]\nlr = 1e-4\n").unwrap();
    ranges::check_table(&table).unwrap();
}

/// Through the program: nothing is made, no model is looked for.
#[test]
fn a_wrong_number_ends_the_program_before_any_work() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out").to_string_lossy().into_owned();
    for wrong in [
        "--lr=nan",
        "--lr=-1",
        "--clip=nan",
        "--warmup-ratio=5",
        "--lora-rank=0",
        "--epochs=0",
        "--batch-tokens=0",
    ] {
        let args = ["train", "--model", "no-such-model", "--shards", "none", "--out", &out, wrong];
        let end = program().args(args).output().unwrap();
        let option = wrong.split('=').next().unwrap();
        failed(&end, &args, &[option, "was expected"]);
        assert!(!dir.path().join("out").exists(), "{wrong}");
    }
}

#[test]
fn every_environment_variable_is_published() {
    let mut seen = BTreeSet::new();
    for folder in ["src", "build", "kernels", "scripts", "tests", "benches", "docs", ".ci"] {
        for path in files(folder, &["rs", "sh", "py", "cu", "cuh", "cpp", "hpp", "h", "md", "run"]) {
            let body = fs::read_to_string(&path).unwrap();
            for (at, _) in body.match_indices("SDRRL_") {
                let name: String = body[at..]
                    .chars()
                    .take_while(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || *c == '_')
                    .collect();
                // Prefixes in patterns, such as this test's own.
                if name.len() > "SDRRL_".len() && !name.ends_with('_') {
                    seen.insert(name);
                }
            }
        }
    }
    let known: BTreeSet<String> = VARIABLES.iter().map(|v| v.name.to_string()).collect();
    for name in &seen {
        assert!(known.contains(name), "{name} is not in src/report/environment.rs");
    }
    for name in known.iter().filter(|n| n.starts_with("SDRRL_")) {
        assert!(seen.contains(name), "{name} is nowhere read");
    }
    assert_eq!(
        fs::read_to_string("docs/environment.md").unwrap(),
        page(),
        "docs/environment.md is another list"
    );
    let help = text(&program().arg("--help").output().unwrap().stdout);
    assert!(help.contains("SDRRL_VECTORS") && help.contains("RAYON_NUM_THREADS"), "{help}");
}

/// A level that the processor has is taken, one that it has not or that is none is an error; the manifest says which it was.
#[test]
fn the_vector_level_is_chosen_and_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("p").to_string_lossy().into_owned();
    let pairs = "assets/quickstart/world/parallel.en-es.tsv";
    let args = ["parallel", "--out", &out, "--file", pairs, "--limit", "5", "--target-languages", "es"];
    let with = |level: &str| program().args(args).env("SDRRL_VECTORS", level).output().unwrap();
    failed(&with("sse9"), &args, &["SDRRL_VECTORS", "sse9", "portable was expected"]);
    let end = with("portable");
    assert!(end.status.success(), "{}", text(&end.stderr));
    let manifest = fs::read_to_string(dir.path().join("p/manifest.json")).unwrap();
    assert!(manifest.contains("\"processor\": \"portable\""), "{manifest}");
    // Another level is no other work.
    assert!(text(&program().args(args).output().unwrap().stdout).contains("unchanged"));
}
