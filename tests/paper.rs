//! The paper's set-up in a folder that has none of its files, and the script that lays them out.
use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Output},
};

use crate::{
    cli::{failed, text},
    common::program,
};

/// `recipes/` alone, and an empty Hugging Face cache.
fn bare(args: &[&str]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("recipes")).unwrap();
    for entry in fs::read_dir("recipes").unwrap().map(|e| e.unwrap()) {
        fs::copy(entry.path(), dir.path().join("recipes").join(entry.file_name())).unwrap();
    }
    let cache = dir.path().join("cache");
    program().args(args).current_dir(dir.path()).env("HF_HUB_CACHE", cache).output().unwrap()
}

#[test]
fn everything_that_is_missing_is_named_at_once() {
    let args = ["run", "recipes/paper-llama2-7b.toml", "--check"];
    let missing = [
        "hf download meta-llama/Llama-2-7b-hf",
        "hf download facebook/nllb-200-3.3B",
        "hf download Unbabel/wmt22-cometkiwi-da",
        "questions: assets/paper/alpaca.en.json is not there",
        "dictionaries/en-pl.txt is not there",
        "parallel/en-cs.tsv is not there",
        "belebele/eng_Latn.jsonl is not there",
        "belebele/pol_Latn.jsonl is not there",
        "devtest/eng_Latn.devtest is not there",
        "devtest/slv_Latn.devtest is not there",
        "xl-sum/ja.jsonl is not there",
        "mkqa.jsonl.gz is not there",
        "task xl-sum-ja: ROUGE in Japanese needs",
    ];
    let out = bare(&args);
    failed(&out, &args, &missing);
    let told = text(&out.stderr);
    assert_eq!(told.matches("eng_Latn.devtest is not there").count(), 1, "{told}");
    let args = ["ablate", "recipes/paper-ablations.toml", "--check"];
    let more = ["arm sdrrl:", "arm french:", "alpaca.fr.json is not there", "fr-cs.txt is not there"];
    let out = bare(&args);
    failed(&out, &args, &[&missing[..], &more].concat());
    assert_eq!(text(&out.stderr).matches("en-cs.tsv is not there").count(), 1);
}

#[test]
fn shares_and_caps_are_checked_before_the_first_stage() {
    for (setting, part) in [
        ("assemble.mix=[\"X>X=1\"]", "`X>X` is no pair type"),
        ("assemble.caps=[\"qq=1\"]", "`qq` is neither a pair type nor a language"),
    ] {
        let args = ["run", "recipes/quickstart.toml", "--check", "--set", setting];
        crate::cli::fails(&args, &[part]);
    }
}

/// The script in a folder of its own, called from beside it.
fn lay_out(root: &Path, folder: &str) -> Output {
    let scripts = root.join("repository/scripts");
    fs::create_dir_all(&scripts).unwrap();
    fs::copy("scripts/get_paper_assets.sh", scripts.join("get_paper_assets.sh")).unwrap();
    let script = "repository/scripts/get_paper_assets.sh";
    Command::new("bash").args([script, folder]).current_dir(root).output().unwrap()
}

#[test]
fn the_papers_files_are_laid_out_and_none_is_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let (root, downloads) = (dir.path(), dir.path().join("my downloads"));
    let write = |path: &str, text: &str| {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("my downloads/alpaca_data.json", "[]");
    write("my downloads/more of them/en-no.txt", "a b");
    write("my downloads/eng_Latn.jsonl", "{}");
    symlink("..", downloads.join("loop")).unwrap();
    let paper = root.join("repository/assets/paper");
    let read = |path: &str| fs::read_to_string(paper.join(path)).unwrap();
    let fine = |folder: &str| {
        let out = lay_out(root, folder);
        assert!(out.status.success() && out.stderr.is_empty(), "{}", text(&out.stderr));
    };
    // Again, and from a folder that holds what is laid out.
    for folder in ["my downloads", "my downloads", "repository/assets/paper", "repository", "my downloads"] {
        fine(folder);
        assert_eq!(read("alpaca.en.json") + &read("dictionaries/en-nb.txt"), "[]a b");
        // A file of the user's own.
        write("repository/assets/paper/belebele/ces_Latn.jsonl", "mine");
    }
    assert_eq!(read("belebele/ces_Latn.jsonl") + &read("belebele/eng_Latn.jsonl"), "mine{}");
    let refused = |part: &str| failed(&lay_out(root, "my downloads"), &["get_paper_assets.sh"], &[part]);
    write("my downloads/ces_Latn.jsonl", "other");
    refused("ces_Latn.jsonl is there and is not");
    fs::remove_file(downloads.join("ces_Latn.jsonl")).unwrap();
    write("my downloads/en-no.txt", "a b");
    fine("my downloads");
    write("my downloads/en-cs.txt", "one");
    write("my downloads/more of them/en-cs.txt", "another");
    refused("differ: which is assets/paper/dictionaries/en-cs.txt?");
    assert_eq!(read("belebele/ces_Latn.jsonl"), "mine");
}
