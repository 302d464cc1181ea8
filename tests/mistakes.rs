//! Forty mistakes that people make, each with the words that its message must have: what, where, what was expected and found, what to do next.
use std::fs;

use crate::{
    cli::{failed_with, text},
    common::program,
};

/// (arguments, exit code, words of the message); {m} is the model, {d} a folder with the files below.
const MISTAKES: &[(&str, i32, &[&str])] = &[
    // Recipes.
    ("run {d}/absent.toml", 1, &["absent.toml", "give the path of a recipe"]),
    ("run {d}/r.toml --set train.lr=-1", 1, &["train.lr is -1", "at least 0", "was expected"]),
    ("run {d}/r.toml --set train.lora-rank=0", 1, &["train.lora-rank is 0", "at least 1"]),
    ("run {d}/r.toml --set train.epochs=0", 1, &["train.epochs is 0", "above 0"]),
    ("run {d}/r.toml --set filter.tau=7", 1, &["filter.tau is 7", "from 0 to 1"]),
    ("run {d}/r.toml --set code-switch.rate=2", 1, &["code-switch.rate is 2", "at most 1"]),
    ("run {d}/r.toml --set train.lrr=1", 1, &["lrr", "did you mean `lr`"]),
    ("run {d}/r.toml --set trian.lr=1", 1, &["trian", "did you mean `train`"]),
    ("run {d}/r.toml --set train.schedule=cosin", 1, &["cosin", "did you mean `cosine`"]),
    ("run {d}/r.toml --set train.decay-ratio=0.3", 1, &["decay-ratio", "schedule wsd"]),
    ("run {d}/r.toml --set train", 1, &["--set train", "expected key=value"]),
    ("run {d}/r.toml --set dtype=fp16", 1, &["fp16", "bf16"]),
    ("run {d}/r.toml --set device=gpu", 1, &["there is no device `gpu`", "cpu, cuda"]),
    ("run {d}/r.toml --set source-language=englisch", 1, &["source-language", "englisch"]),
    ("run {d}/r.toml --set target-languages=[\"en\"]", 1, &["target-languages", "is the source language"]),
    ("run {d}/r.toml --set model=no/such-model", 1, &["no/such-model"]),
    (
        "run {d}/r.toml --set questions=[\"{d}/none.jsonl\"]",
        1,
        &["questions", "none.jsonl", "relative to the recipe"],
    ),
    ("run {d}/r.toml --set questions=[\"{d}/broken.jsonl\"]", 1, &["broken.jsonl:2"]),
    ("run {d}/r.toml --set translate.file={d}/none.tsv", 1, &["translate.file", "none.tsv", "is not there"]),
    ("run {d}/r.toml --set translate.engine=command", 1, &["translate.command is not set"]),
    (
        "run {d}/r.toml --set translate.engine=command --set translate.command=no-such-program",
        1,
        &["translate.command", "`no-such-program` is not there", "install it"],
    ),
    ("run {d}/r.toml --set translate.engine=nllb", 1, &["translate.translator is not set", "facebook/nllb"]),
    ("run {d}/r.toml --set score.file={d}/none.txt", 1, &["score.file", "none.txt"]),
    ("run {d}/r.toml --set score.engine=similarity", 1, &["score.model is not set"]),
    ("run {d}/r.toml --set code-switch.dictionary={d}/none.txt", 1, &["code-switch.dictionary", "none.txt"]),
    ("run {d}/r.toml --set parallel.file={d}/none.tsv", 1, &["parallel.file", "none.tsv"]),
    (
        "run {d}/r.toml --set filter.ignore-alarms=[\"loops\"]",
        1,
        &["filter.ignore-alarms", "`loops` is none of", "loop"],
    ),
    (
        "run {d}/r.toml --set generate.template=nonsense",
        1,
        &["generate.template", "`nonsense` is not known", "chatml"],
    ),
    ("run {d}/r.toml --set pack.template={d}/broken.jinja", 1, &["pack.template", "broken.jinja"]),
    (
        "run {d}/r.toml --set train.lora-targets=[\"q_porj\"]",
        1,
        &["train.lora-targets", "`q_porj` is no module", "q_proj"],
    ),
    ("run {d}/r.toml --set assemble.pairs=[\"CT>T\"]", 1, &["code-switch.both-sides"]),
    ("run {d}/r.toml --set work={d}/a-file", 1, &["work", "a-file is a file", "a folder was expected"]),
    ("run {d}/task.toml", 1, &["task t", "tests.jsonl"]),
    ("run {d}/twice.toml", 1, &["the name t occurs twice"]),
    // Commands.
    ("train --model {m} --out {d}/x", 2, &["--shards"]),
    ("train --model {m} --data {d}/none.jsonl --out {d}/x", 1, &["none.jsonl"]),
    ("train --model {m} --data {d}/rows.jsonl --lr -1 --out {d}/x", 1, &["lr is -1", "at least 0"]),
    ("train --model {d}/a-file --data {d}/rows.jsonl --out {d}/x", 1, &["a-file"]),
    (
        "train --model {m} --data {d}/rows.jsonl --adapter {d}/adapter --out {d}/x",
        1,
        &["adapter", "adapter_config.json"],
    ),
    (
        "train --model {m} --data {d}/rows.jsonl --validation 1.5 --out {d}/x",
        2,
        &["1.5 is no share", "below 1"],
    ),
    ("train --model {m} --data {d}/rows.jsonl --fp16 --out {d}/x", 2, &["fp16", "bf16"]),
    ("train --model {m} --shards {d}/none --resume --out {d}/x", 1, &["--resume", "no checkpoint"]),
    ("generate --model {m}", 2, &["--prompts"]),
    ("chat --model {d}/none", 1, &["none", "Hugging Face"]),
    ("chat --model {m} --adapter {d}/adapter", 1, &["adapter"]),
    ("serve --model {m} --adapter model={d}/adapter", 1, &["the name `model` is taken", "NAME="]),
    ("serve --model {m} --port 99999", 2, &["99999"]),
    ("help trainn", 1, &["there is no help on `trainn`", "did you mean `train`"]),
];

#[test]
fn forty_mistakes_are_named_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    fs::write(d.join("a-file"), "x").unwrap();
    fs::write(d.join("broken.jsonl"), "{\"instruction\": \"a\"}\n{\"instruction\": \n").unwrap();
    fs::write(d.join("rows.jsonl"), "{\"question\": \"a\", \"answer\": \"b\"}\n".repeat(3)).unwrap();
    fs::write(d.join("broken.jinja"), "{% for m in messages %}{{ m.content }}").unwrap();
    fs::create_dir(d.join("adapter")).unwrap();
    let recipe = fs::read_to_string("recipes/quickstart.toml").unwrap();
    let recipe = recipe.replace("runs/quickstart", &d.join("work").display().to_string());
    let without_tasks = recipe.split("[[eval.tasks]]").next().unwrap();
    fs::write(d.join("r.toml"), without_tasks).unwrap();
    let task = |file: &str| {
        format!("[[eval.tasks]]\nname = \"t\"\nkind = \"qa\"\nlanguage = \"es\"\nfile = \"{file}\"\n")
    };
    fs::write(d.join("task.toml"), format!("{without_tasks}{}", task("tests.jsonl"))).unwrap();
    let there = task("assets/quickstart/world/test.es.jsonl");
    fs::write(d.join("twice.toml"), format!("{without_tasks}{there}{there}")).unwrap();
    assert!(MISTAKES.len() >= 40);
    for (line, code, parts) in MISTAKES {
        let line = line.replace("{m}", "assets/quickstart/model").replace("{d}", &d.display().to_string());
        let args: Vec<&str> = line.split(' ').collect();
        let out = program().args(&args).env("NO_COLOR", "1").output().unwrap();
        failed_with(*code, &out, &args, parts);
        assert!(!d.join("work").exists() && !d.join("x/manifest.json").exists(), "{line}: nothing was begun");
        assert!(text(&out.stderr).len() < 3000, "{line}: {}", text(&out.stderr));
    }
}
