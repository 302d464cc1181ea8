//! `--base-dtype stored`: commands over a GGUF file's own blocks write the bytes that they write over the dequantised model.
use std::{fs, path::Path};

use crate::{
    cli::{fails, ok},
    common::program,
};

/// A Llama in blocks of ten types with a tokenizer (scripts/golden_gguf.py).
const MODEL: &str = "tests/golden/gguf/chat.gguf";

struct Work(tempfile::TempDir);

impl Work {
    fn new() -> Work {
        let work = Work(tempfile::tempdir().unwrap());
        let questions: String =
            (0..4).map(|i| format!("{{\"question\": \"What is house {i}?\"}}\n")).collect();
        fs::write(work.0.path().join("q.jsonl"), questions).unwrap();
        let examples: String = (0..12)
            .map(|i| format!("{{\"instruction\": \"What is {i}?\", \"output\": \"House {i} is red.\"}}\n"))
            .collect();
        fs::write(work.0.path().join("e.jsonl"), examples).unwrap();
        fs::write(work.0.path().join("text.txt"), "All the cats see the house.\nThe water is cold.\n")
            .unwrap();
        let tasks = format!(
            "[[tasks]]\nname = \"ppl\"\nkind = \"perplexity\"\nlanguage = \"en\"\nfile = \"{}\"\n",
            work.at("text.txt")
        );
        fs::write(work.0.path().join("tasks.toml"), tasks).unwrap();
        work
    }
    fn at(&self, name: &str) -> String {
        self.0.path().join(name).to_string_lossy().into_owned()
    }
    fn run(&self, line: &str, more: &[&str]) -> String {
        let args: Vec<String> = line.split(' ').map(|w| w.replace('@', &self.at(""))).collect();
        ok(&[&args.iter().map(String::as_str).collect::<Vec<_>>()[..], more].concat())
    }
}

/// Every file's bytes but those that hold the time.
fn bytes(dir: &str) -> Vec<(String, Vec<u8>)> {
    let mut found = vec![];
    for entry in fs::read_dir(Path::new(dir)).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let timed = name.starts_with("timing")
            || name == "training.html"
            || name.starts_with("events")
            || name == "manifest.json";
        if entry.path().is_file() && !timed {
            found.push((name, fs::read(entry.path()).unwrap()));
        }
    }
    found.sort();
    assert!(!found.is_empty(), "{dir}");
    found
}

/// Runs `line` (its folder is @OUT) both ways; a folder that is there already is what the other way would make.
fn same(work: &Work, line: &str) {
    let out = |name: &str| line.replace("@OUT", &format!("@{name}"));
    let (dense, kept) = (work.at("dense"), work.at("kept"));
    for dir in [&dense, &kept] {
        let _ = fs::remove_dir_all(dir);
    }
    work.run(&out("dense"), &[]);
    work.run(&out("kept"), &["--base-dtype", "stored"]);
    assert!(bytes(&dense) == bytes(&kept), "{line}");
    let again = work.run(&out("dense"), &["--base-dtype", "stored"]);
    assert!(again.contains("unchanged"), "{line}: {again}");
}

#[test]
fn commands_over_blocks_write_the_bytes_of_the_dequantised_model() {
    let work = Work::new();
    work.run(&format!("pack --model {MODEL} --examples @e.jsonl --out @k"), &[]);
    for how in ["--dtype f32", "--dtype bf16", "--dtype bf16 --device emulated"] {
        let short = "--max-new-tokens 6";
        same(
            &work,
            &format!("generate --model {MODEL} --prompts @q.jsonl --out @OUT {short} --limit 3 {how}"),
        );
        let steps = "--max-steps 2 --batch-documents 2 --lora-rank 2";
        same(&work, &format!("train --model {MODEL} --shards @k --out @OUT {steps} {how}"));
        same(&work, &format!("train --model {MODEL} --shards @k --out @OUT {steps} --dora {how}"));
        same(&work, &format!("eval --model {MODEL} --tasks @tasks.toml --out @OUT {how}"));
        if how == "--dtype f32" {
            work.run(&format!("generate --model {MODEL} --prompts @q.jsonl --out @g --limit 2 {short}"), &[]);
            let languages = "--target-languages es --engine self";
            same(&work, &format!("translate --model {MODEL} --input @g --out @OUT {languages} {short}"));
        }
    }
}

#[test]
fn a_recipe_says_how_its_base_model_is_kept() {
    let work = Work::new();
    let recipe = |name: &str, base: &str| {
        let text = format!(
            "name = \"r\"\nwork = \"{}\"\nmodel = \"{MODEL}\"\nexamples = \"{}\"\n{base}\n[train]\nmax-steps = 2\nlora-rank = 2\n\
             [[eval.tasks]]\nname = \"ppl\"\nkind = \"perplexity\"\nlanguage = \"en\"\nfile = \"{}\"\n",
            work.at(name),
            work.at("e.jsonl"),
            work.at("text.txt")
        );
        fs::write(work.at(&format!("{name}.toml")), text).unwrap();
        work.at(&format!("{name}.toml"))
    };
    ok(&["run", &recipe("dense", "")]);
    ok(&["run", &recipe("kept", "base-dtype = \"stored\"")]);
    for stage in ["train", "eval"] {
        let of = |name: &str| bytes(&format!("{}/{stage}", work.at(name)));
        assert!(of("dense") == of("kept"), "{stage}");
    }
    fails(&["run", &recipe("wrong", "base-dtype = \"q4_k\"")], &["base-dtype", "q4_k", "stored"]);
}

#[test]
fn where_there_are_no_blocks_to_keep_it_is_refused_by_name() {
    let work = Work::new();
    let (q, k, out) = (work.at("q.jsonl"), work.at("k"), work.at("out"));
    let stored = ["--base-dtype", "stored"];
    let refuse = |args: &[&str], parts: &[&str]| fails(&[args, &stored].concat(), parts);
    let model = "assets/quickstart/model";
    refuse(
        &["generate", "--model", model, "--prompts", &q, "--out", &out],
        &[model, "--base-dtype stored", "here are neither"],
    );
    work.run(&format!("pack --model {MODEL} --examples @e.jsonl --out @k"), &[]);
    refuse(
        &["train", "--model", MODEL, "--shards", &k, "--out", &work.at("l"), "--method", "full"],
        &["--base-dtype stored", "training of all weights", "leave it out"],
    );
    let (input, other) = (work.at("g"), work.at("other"));
    let from = ["--input", &input, "--out", &other, "--target-languages", "es"];
    work.run(
        &format!("generate --model {MODEL} --prompts @q.jsonl --out @g --limit 2 --max-new-tokens 3"),
        &[],
    );
    let file = ["translate", "--engine", "file", "--file", &q];
    refuse(&[&file[..], &from].concat(), &["--base-dtype stored", "this engine", "leave it out"]);
    refuse(
        &[&["score", "--engine", "builtin", "--file", &q], &from[..]].concat(),
        &["--base-dtype stored", "a scorer"],
    );
}

/// The model with the matrices that have no product in integers called types of the same or a smaller size that have one.
fn in_integers(work: &Work) -> String {
    let mut bytes = fs::read(MODEL).unwrap();
    for (name, old, new) in [("blk.1.attn_v.weight", 1u32, 8u32), ("blk.1.ffn_gate.weight", 20, 2)] {
        let at = bytes.windows(name.len()).position(|w| w == name.as_bytes()).unwrap() + name.len() + 4 + 16;
        assert_eq!(bytes[at..at + 4], old.to_le_bytes(), "{name}");
        bytes[at..at + 4].copy_from_slice(&new.to_le_bytes());
    }
    let path = work.at("integers.gguf");
    fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn activations_in_integers_are_read_or_refused_or_it_is_said_where_not() {
    let work = Work::new();
    let (q, e, out) = (work.at("q.jsonl"), work.at("e.jsonl"), work.at("out"));
    let refuse = |line: &str, more: &[&str], parts: &[&str]| {
        let line: Vec<&str> = line.split(' ').chain(more.iter().copied()).collect();
        fails(&[&line[..], &["--base-dtype", "stored", "--activations", "int8"]].concat(), parts);
        assert!(!Path::new(&out).exists(), "{line:?}: nothing is begun");
    };
    let own = &["--model", MODEL, "--out", &out];
    let remote = "generate --engine openai --endpoint http://127.0.0.1:9/v1 --remote-model m --prompts";
    refuse(remote, &[&q, "--out", &out], &["--base-dtype stored", "a model behind an endpoint"]);
    refuse(&format!("train --data {e}"), own, &["training reads activations in f32"]);
    let pairs = format!("--source {0} --target {0}", work.at("text.txt"));
    let align = format!("align {pairs} --source-language en --target-language es --after {MODEL}");
    refuse(&align, own, &["the model after training is read in f32"]);
    let short = format!("generate --prompts {q} --limit 2 --max-new-tokens 3");
    refuse(&short, own, &["blk.1.attn_v.weight is F16", "leave --activations out"]);
    // What a recipe asks for of a model that does not have it is found before its first stage.
    let check = |model: &str, keys: &[&str], parts: &[&str]| {
        let mut args: Vec<String> = ["run", "recipes/quickstart.toml", "--check"].map(String::from).into();
        for key in keys.iter().map(|k| k.to_string()).chain([format!("model={model}"), format!("work={out}")])
        {
            args.extend(["--set".into(), key]);
        }
        fails(&args.iter().map(String::as_str).collect::<Vec<_>>(), parts);
    };
    let stored = "base-dtype=stored";
    check("assets/quickstart/model", &[stored], &["base-dtype", "here are neither"]);
    check(MODEL, &[stored, "activations=int8"], &["blk.1.attn_v.weight is F16"]);
    check(MODEL, &[stored, "train.method=full"], &["training of all weights"]);
}

#[test]
fn matrices_that_an_adapter_was_merged_into_are_said_to_be_read_in_f32() {
    let work = Work::new();
    let model = in_integers(&work);
    work.run(&format!("pack --model {model} --examples @e.jsonl --out @k"), &[]);
    let modules = "--lora-targets q_proj,v_proj --max-steps 1";
    work.run(&format!("train --model {model} --shards @k --out @adapter {modules}"), &[]);
    let told = |more: &[&str]| {
        let line = format!(
            "generate --model {model} --prompt hi --max-new-tokens 3 --base-dtype stored --activations int8"
        );
        let out = program().args(line.split(' ')).args(more).output().unwrap();
        assert!(out.status.success());
        String::from_utf8(out.stderr).unwrap()
    };
    let warning = "4 of 15 matrices have the adapter in them";
    assert!(told(&["--adapter", &work.at("adapter")]).contains(warning));
    assert!(!told(&[]).contains("warning"));
}

#[test]
fn how_long_products_over_blocks_take_is_not_guessed_from_dense_ones() {
    let work = Work::new();
    let check = |more: &[&str]| {
        let (model, place) = (format!("model={MODEL}"), format!("work={}", work.at("run")));
        let line = ["run", "recipes/quickstart.toml", "--check", "--set", &model, "--set", &place];
        ok(&[&line[..], more].concat())
    };
    let blocks = check(&["--set", "base-dtype=stored"]);
    assert!(
        blocks
            .contains("not known: the model could not be measured: products over a file's quantised blocks")
    );
    assert!(blocks.contains("and what generate, train, eval-base qa-en"), "{blocks}");
    assert!(!check(&[]).contains("not known"));
}
