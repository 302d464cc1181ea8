//! Every command that writes, against files of others under each name that it writes: refused by name before any work, nothing touched.
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use super::{MODEL, PHRASES, QUESTIONS, output};
use crate::cli::{ok, text};

const WORLD: &str = "assets/quickstart/world";
const SMALL_RUN: &str = "--set generate.limit=24 --set generate.max-new-tokens=8 --set rows-per-shard=16 --set variants=[\"sft\"] \
    --set train.max-steps=1 --set eval.bootstrap-samples=10";

/// What every command needs, made once.
fn prepare(at: &dyn Fn(&str) -> String) {
    let words = |line: String| ok(&line.split_whitespace().collect::<Vec<_>>());
    let es = "--target-languages es";
    words(format!(
        "generate --model {MODEL} --prompts {QUESTIONS} --limit 24 --max-new-tokens 8 --out {}",
        at("g")
    ));
    words(format!("translate --input {} {es} --file {PHRASES} --out {}", at("g"), at("t")));
    words(format!("score --input {} {es} --file {WORLD}/words.en-es.txt --out {}", at("t"), at("s")));
    words(format!("filter --input {} {es} --tau 0.1 --out {}", at("s"), at("f")));
    words(format!("assemble --input {} {es} --out {}", at("f"), at("a")));
    words(format!("pack --model {MODEL} --examples {} --out {}", at("a"), at("k")));
    words(format!("train --model {MODEL} --shards {} --max-steps 1 --out {}", at("k"), at("l")));
    let write = |name: &str, text: &str| fs::write(at(name), text).unwrap();
    write("en.txt", "I see a duck.\nThe baker is in the city.\nA red house.\n");
    write("es.txt", "Veo un pato.\nEl panadero está en la ciudad.\nUna casa roja.\n");
    let task = "[[tasks]]\nname = \"ppl\"\nkind = \"perplexity\"\nlanguage = \"es\"\n";
    write("tasks.toml", &format!("{task}file = \"{}\"\n", at("es.txt")));
    write("chat.jsonl", &"{\"instruction\": \"What is red?\", \"output\": \"A house.\"}\n".repeat(40));
    let pair = "{\"prompt\": \"What is red?\", \"chosen\": \"A house.\", \"rejected\": \"A duck.\"}\n";
    write("pairs.jsonl", &pair.repeat(40));
    let sets = SMALL_RUN.split_whitespace().filter(|word| *word != "--set");
    let sets: Vec<String> = sets.map(|set| format!("{set:?}")).collect();
    let matrix = "name = \"small\"\nwork = \"none\"\nrecipe = \"recipes/quickstart.toml\"\n";
    write("matrix.toml", &format!("{matrix}set = [{}]\n[[arms]]\nname = \"one\"\n", sets.join(", ")));
}

/// Every command that writes; OUT is its folder, or its file.
fn writers(at: &dyn Fn(&str) -> String) -> Vec<String> {
    let (g, t, s, f, k) = (at("g"), at("t"), at("s"), at("f"), at("k"));
    let es = "--target-languages es";
    let ask = format!("generate --model {MODEL} --prompts {QUESTIONS} --limit 24 --max-new-tokens 8");
    vec![
        format!("{ask} --out OUT"),
        format!("{ask} --out OUT/answers.jsonl"),
        format!("translate --input {g} {es} --file {PHRASES} --out OUT"),
        format!("score --input {t} {es} --file {WORLD}/words.en-es.txt --out OUT"),
        format!("sweep --input {s} {es} --out OUT"),
        format!("filter --input {s} {es} --out OUT"),
        format!("code-switch --input {f} {es} --dictionary {WORLD}/words.en-es.txt --out OUT"),
        format!("parallel --file {WORLD}/parallel.en-es.tsv --limit 20 {es} --out OUT"),
        format!("assemble --input {f} {es} --out OUT"),
        format!("pack --model {MODEL} --examples {} --out OUT", at("a")),
        format!("train --model {MODEL} --shards {k} --max-steps 1 --out OUT"),
        format!("train --model {MODEL} --shards {k} --max-steps 1 --method full --out OUT"),
        format!("train --model {MODEL} --data {} --max-steps 1 --out OUT", at("chat.jsonl")),
        format!("train --model {MODEL} --data {} --objective dpo --max-steps 1 --out OUT", at("pairs.jsonl")),
        format!("merge --model {MODEL} --adapter {} --out OUT", at("l")),
        format!("quantize --model {MODEL} --out OUT/m.gguf"),
        format!("eval --model {MODEL} --tasks {} --out OUT", at("tasks.toml")),
        format!(
            "align --model {MODEL} --source {} --target {} --target-language es --out OUT",
            at("en.txt"),
            at("es.txt")
        ),
        format!("run recipes/quickstart.toml --set work=OUT {SMALL_RUN}"),
        format!("ablate {} --set work=OUT", at("matrix.toml")),
        "doctor --trace OUT/trace.json".to_string(),
    ]
}

/// The files below `dir`, by their path in it.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    fn walk(dir: &Path, root: &Path, out: &mut BTreeMap<PathBuf, Vec<u8>>) {
        for path in fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()) {
            match path.is_dir() {
                true => walk(&path, root, out),
                false => drop(out.insert(path.strip_prefix(root).unwrap().into(), fs::read(&path).unwrap())),
            }
        }
    }
    let mut out = BTreeMap::new();
    walk(dir, dir, &mut out);
    out
}

#[test]
fn nobodys_files_are_written_over_whatever_command_writes() {
    const FOREIGN: &[u8] = b"somebody's\n";
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    prepare(&at);
    let mut planted = 0;
    for (number, line) in writers(&at).into_iter().enumerate() {
        let run = |out: &Path| {
            fs::create_dir_all(out).unwrap();
            let line = line.replace("OUT", &out.to_string_lossy());
            output(&line.split_whitespace().collect::<Vec<_>>())
        };
        let made = dir.path().join(format!("made-{number}"));
        let end = run(&made);
        assert!(end.status.success(), "{line}: {}", text(&end.stderr));
        let mut names: Vec<PathBuf> = files(&made).into_keys().collect();
        assert!(!names.is_empty(), "{line} writes nothing");
        if names.iter().any(|name| name.ends_with("manifest.json")) {
            names.extend(["manifest.json", ".lock", ".lock.1-1"].map(PathBuf::from));
        }
        // Cards are signed and have a test of their own; the name of an event file has the time in it. An ablation names its stages' folders by their content.
        let checked = |name: &Path| {
            let text = name.to_string_lossy();
            !name.ends_with("README.md") && !text.contains("tfevents") && !text.starts_with("cache/")
        };
        names.retain(|name| checked(name));
        for name in &names {
            planted += 1;
            let out = dir.path().join(format!("out-{number}-{planted}"));
            let place = out.join(name);
            fs::create_dir_all(place.parent().unwrap()).unwrap();
            fs::write(&place, FOREIGN).unwrap();
            let end = run(&out);
            let (name, said) = (name.display(), text(&end.stderr));
            let last = place.file_name().unwrap().to_string_lossy().into_owned();
            assert_eq!(end.status.code(), Some(1), "{line} with {name}: {said}{}", text(&end.stdout));
            assert!(said.contains(&last) && !said.contains("panicked"), "{line} with {name}: {said}");
            let left = files(&out);
            assert_eq!(
                left[&PathBuf::from(place.strip_prefix(&out).unwrap())],
                FOREIGN,
                "{line} with {name}"
            );
            assert_eq!(left.len(), 1, "{line} with {name}: work was begun: {:?}", left.keys());
        }
        // Its own it replaces, or finds unchanged.
        let again = run(&made);
        let refused = line.contains("--trace") || line.starts_with("quantize");
        assert_eq!(again.status.success(), !refused, "{line}: {}", text(&again.stderr));
    }
    assert!(planted > 80, "{planted}");
}

/// A file that somebody lays beside the results of a finished stage, under a name that the stage might write, stays when the stage is made again.
#[test]
fn what_a_manifest_does_not_list_stays() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let (first, other) = (at("first.jsonl"), at("other.jsonl"));
    let row = |question: &str| {
        format!("{{\"instruction\": \"{question}\", \"output\": \"A house.\"}}\n").repeat(12)
    };
    fs::write(&first, row("What is red?")).unwrap();
    fs::write(&other, row("What is blue?")).unwrap();
    let pack = |rows: &str| output(&["pack", "--model", MODEL, "--examples", rows, "--out", &at("k")]);
    let train = |rate: &str| {
        let (k, l) = (at("k"), at("l"));
        let base = ["train", "--model", MODEL, "--shards", &k, "--out", &l, "--max-steps", "1", "--restart"];
        output(&[&base[..], &["--lr", rate]].concat())
    };
    let refused = |end: std::process::Output, name: &str| {
        let said = text(&end.stderr);
        assert!(!end.status.success() && said.contains(name) && said.contains("does not list"), "{said}");
    };
    assert!(pack(&first).status.success());
    assert!(train("1e-3").status.success());
    // Not a name that `pack` writes: none of its business.
    fs::write(at("k/notes.txt"), "mine").unwrap();
    assert!(pack(&other).status.success());
    assert_eq!(fs::read_to_string(at("k/notes.txt")).unwrap(), "mine");
    fs::write(at("l/backup.safetensors"), "mine").unwrap();
    refused(train("2e-3"), "backup.safetensors");
    assert_eq!(fs::read_to_string(at("l/backup.safetensors")).unwrap(), "mine");
    assert!(Path::new(&at("l/adapter_model.safetensors")).exists(), "nothing was removed");
    fs::rename(at("l/backup.safetensors"), at("backup.safetensors")).unwrap();
    assert!(train("2e-3").status.success());
}
