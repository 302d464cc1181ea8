//! `--base-dtype stored`: commands over a GGUF file's own blocks write the bytes that they write over the dequantised model.
use std::{fs, path::Path};

use crate::cli::{fails, ok};

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
        &[model, "--base-dtype stored", ".gguf file, which this is not"],
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
