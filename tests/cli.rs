//! The binary as a user meets it: the quickstart's stages, kills at any moment, bad input.
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    thread,
    time::Duration,
};

use sdrrl::data::random::RowRandom;

use crate::common::program;

fn sdrrl(args: &[&str]) -> Output {
    program().args(args).env("NO_COLOR", "1").output().unwrap()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Standard output of a call that must succeed.
#[track_caller]
pub fn ok(args: &[&str]) -> String {
    let out = sdrrl(args);
    assert!(out.status.success(), "{args:?}: {}{}", text(&out.stdout), text(&out.stderr));
    text(&out.stdout)
}

/// The message of a call that must fail with exit code 1, without a panic.
#[track_caller]
pub fn fails(args: &[&str], parts: &[&str]) {
    failed(&sdrrl(args), args, parts);
}

/// The same of a call that has ended.
#[track_caller]
pub fn failed(out: &Output, args: &[&str], parts: &[&str]) {
    failed_with(1, out, args, parts);
}

/// The same with another exit code (`sdrrl --help` lists them).
#[track_caller]
pub fn failed_with(code: i32, out: &Output, args: &[&str], parts: &[&str]) {
    let message = text(&out.stderr);
    assert_eq!(out.status.code(), Some(code), "{args:?}: {message}");
    assert!(!message.contains("panicked"), "{message}");
    for part in parts {
        assert!(message.contains(part), "{args:?}: {part:?} is not in: {message}");
    }
}

/// The quickstart, small: fewer questions and steps.
fn small(work: &Path) -> Vec<String> {
    let set = |kv: &str| ["--set".to_string(), kv.to_string()];
    let mut args = vec!["run".to_string(), "recipes/quickstart.toml".to_string()];
    for kv in [
        &format!("work={}", work.display()),
        "generate.limit=80",
        "rows-per-shard=32",
        "train.max-steps=12",
        "train.eval-every=5",
        "train.checkpoint-every=3",
        "variants=[\"sdrrl\", \"sft\"]",
        "eval.bootstrap-samples=50",
    ] {
        args.extend(set(kv));
    }
    args
}

/// Every file of a finished run that must not differ between runs: all but clocks, the pages that show them and TensorBoard's files.
fn contents(work: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    fn walk(dir: &Path, root: &Path, out: &mut BTreeMap<PathBuf, Vec<u8>>) {
        let timed = dir.join("timing.jsonl").exists();
        for entry in fs::read_dir(dir).unwrap().flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().to_string();
            if path.is_dir() {
                walk(&path, root, out);
            } else if name != "training.html"
                && !name.contains("tfevents")
                && name != "timing.jsonl"
                && !(timed && name == "report.html")
            {
                // The work folder's own name stands in the report's settings.
                let bytes = fs::read(&path).unwrap();
                let own = root.to_string_lossy().to_string();
                let bytes = if name == "report.html" {
                    text(&bytes).replace(&own, "WORK").into_bytes()
                } else {
                    bytes
                };
                out.insert(path.strip_prefix(root).unwrap().into(), bytes);
            }
        }
    }
    let mut out = BTreeMap::new();
    walk(work, work, &mut out);
    out
}

/// SIGKILL at 20 random moments, with settings of several stages changed between kills; then the first command ends with the same bytes.
#[test]
fn a_run_killed_at_any_moment_ends_with_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, killed) = (dir.path().join("whole"), dir.path().join("killed"));
    let args = small(&whole);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let began = std::time::Instant::now();
    let table = ok(&args);
    let seconds = began.elapsed().as_secs_f64();
    assert!(table.contains("qa-es") && table.contains("English kept"), "{table}");
    assert!(table.contains("next:   sdrrl chat --model assets/quickstart/model --adapter"), "{table}");
    let page = fs::read_to_string(whole.join("report.html")).unwrap();
    for part in
        ["UTC", "peak memory", "eval-base/qa-es", "train-sdrrl", "tokens per second", "below tau", "✓", "✗"]
    {
        assert!(page.contains(part), "{part} is not in the page");
    }
    let args = small(&killed);
    let mut random = RowRandom::new(1, "kill", "moments");
    let changes: [&[&str]; 5] = [
        &[],
        &["filter.tau=0.9", "pack.max-length=60"],
        &["code-switch.rate=0.5", "assemble.validation=0.2"],
        &[],
        &["generate.max-new-tokens=5", "parallel.limit=30", "train.lr=0.002", "pack.max-length=48"],
    ];
    for i in 0..20 {
        let changed = changes[i % changes.len()].iter().flat_map(|kv| ["--set", kv]);
        let mut child = program()
            .args(&args)
            .args(changed)
            .arg("--restart")
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // Short lives, so that most kills meet unfinished work.
        thread::sleep(Duration::from_secs_f64(random.uniform() * 0.25 * seconds.clamp(0.4, 20.0)));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    // A training that was killed with other settings is not gone on with, unless it is said to.
    ok(&[&args[..], &["--restart"]].concat());
    let (a, b) = (contents(&whole), contents(&killed));
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for (name, bytes) in &a {
        assert!(b[name] == *bytes, "{} differs", name.display());
    }
    // And a finished run is skipped.
    let again = ok(&args);
    assert!(again.contains("train: unchanged, skipped") && !again.contains("step 1/"), "{again}");
}

#[test]
fn stages_by_hand_give_what_the_recipe_gives() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_string_lossy().to_string();
    let (model, world) = ("assets/quickstart/model", "assets/quickstart/world");
    let file = |name: &str| format!("{world}/{name}");
    let es = ["--target-languages", "es"];
    let (questions, phrases, words, pairs) = (
        file("questions.en.jsonl"),
        file("phrases.en-es.tsv"),
        file("words.en-es.txt"),
        file("parallel.en-es.tsv"),
    );
    ok(&[
        "generate",
        "--model",
        model,
        "--prompts",
        &questions,
        "--out",
        &at("g"),
        "--max-new-tokens",
        "32",
        "--limit",
        "60",
        "--rows-per-shard",
        "25",
    ]);
    // A job array: the parts in any order make the whole.
    for part in ["2/2", "1/2"] {
        ok(&[
            &["translate", "--input", &at("g"), "--out", &at("t"), "--file", &phrases, "--part", part],
            &es[..],
        ]
        .concat());
    }
    ok(&[&["score", "--input", &at("t"), "--out", &at("s"), "--file", &words], &es[..]].concat());
    let filtered =
        ok(&[&["filter", "--input", &at("s"), "--out", &at("f"), "--tau", "0.8"], &es[..]].concat());
    assert!(filtered.contains("at tau 0.8") && !filtered.contains("60 of 60"), "real rejections: {filtered}");
    ok(&[
        &["code-switch", "--input", &at("f"), "--out", &at("c"), "--dictionary", &words, "--both-sides"],
        &es[..],
    ]
    .concat());
    ok(&[&["parallel", "--out", &at("p"), "--file", &pairs, "--limit", "20"], &es[..]].concat());
    let made = ok(&[
        &[
            "assemble",
            "--input",
            &at("c"),
            "--parallel",
            &at("p"),
            "--out",
            &at("a"),
            "--pairs",
            "S>S,T>T,CS>T,CT>S",
        ],
        &es[..],
    ]
    .concat());
    for pair in ["S>S", "T>T", "CS>T", "CT>S", "parallel", "validation"] {
        assert!(made.contains(pair), "{pair}: {made}");
    }
    ok(&["pack", "--model", model, "--examples", &at("a"), "--out", &at("k")]);
    let shown = ok(&["inspect", &format!("{}/train.tokens", at("k")), "--model", model, "-n", "1"]);
    assert!(shown.contains("<s>") && shown.contains("[</s>]") && shown.contains("<|answer|>"), "{shown}");
    assert_eq!(shown.matches("<s>").count(), 1, "exactly one begin token: {shown}");
    ok(&[
        "train",
        "--model",
        model,
        "--shards",
        &at("k"),
        "--out",
        &at("l"),
        "--max-steps",
        "4",
        "--lr",
        "1e-3",
    ]);
    // Training goes on from an adapter: its first loss is that of the trained model, as a second run on the same model shows.
    let train = |adapter: &str, out: &str| {
        let (k, l) = (at("k"), at("l"));
        let from: &[&str] = if adapter.is_empty() { &[] } else { &["--adapter", &l] };
        let base =
            ["train", "--model", model, "--shards", &k, "--out", out, "--max-steps", "1", "--seed", "7"];
        ok(&[&base[..], from].concat());
        let metrics = std::fs::read_to_string(format!("{out}/metrics.jsonl")).unwrap();
        let loss = |l: &str| serde_json::from_str::<serde_json::Value>(l).unwrap()["train/loss"].as_f64();
        metrics.lines().find_map(loss).unwrap()
    };
    let (fresh, further) = (train("", &at("l0")), train("l", &at("l1")));
    assert!(further < 0.99 * fresh, "{further} {fresh}");
    let method = ["--method", "full", "--adapter", &at("l")];
    let base = ["train", "--model", model, "--shards", &at("k"), "--out", &at("l2")];
    fails(&[&base[..], &method].concat(), &["--adapter", "--method"]);
    let merged = ok(&["merge", "--model", model, "--adapter", &at("l"), "--out", &at("m")]);
    assert!(merged.contains("0.00e0 to the merge in f32"), "{merged}");
    ok(&[
        "generate",
        "--model",
        &at("m"),
        "--prompts",
        &questions,
        "--out",
        &at("merged.jsonl"),
        "--limit",
        "5",
    ]);
    ok(&[
        "generate",
        "--model",
        model,
        "--adapter",
        &at("l"),
        "--prompts",
        &questions,
        "--out",
        &at("adapter.jsonl"),
        "--limit",
        "5",
    ]);
    let answers = |name: &str| -> Vec<String> {
        let text = fs::read_to_string(at(name)).unwrap();
        text.lines()
            .map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()["answer"]["text"].to_string())
            .collect()
    };
    assert_eq!(answers("merged.jsonl"), answers("adapter.jsonl"));
}

#[test]
fn every_engine_translates_and_scores() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_string_lossy().to_string();
    let model = "assets/quickstart/model";
    let questions = "assets/quickstart/world/questions.en.jsonl";
    ok(&[
        "generate",
        "--model",
        model,
        "--prompts",
        questions,
        "--out",
        &at("g"),
        "--max-new-tokens",
        "32",
        "--limit",
        "6",
    ]);
    let translate = |out: &str, more: &[&str]| {
        let base = ["translate", "--input", &at("g"), "--out", &at(out), "--target-languages", "es"]
            .map(String::from);
        ok(&base.iter().map(String::as_str).chain(more.iter().copied()).collect::<Vec<_>>());
        rows(&at(out))
    };
    let rotated =
        translate("command", &["--engine", "command", "--command", "tr a-y b-z", "--protocol", "batch"]);
    assert!(rotated[0]["translations"]["es"]["instruction"].as_str().is_some_and(|t| !t.is_empty()));
    let own = translate("self", &["--engine", "self", "--model", model, "--max-new-tokens", "24"]);
    assert!(own.iter().all(|r| r["translations"]["es"]["engine"].as_str().unwrap().starts_with("self")));
    // What one engine made is another's file.
    let lines: Vec<String> = own
        .iter()
        .map(|r| {
            let t = &r["translations"]["es"];
            serde_json::json!({"id": r["id"], "instruction": t["instruction"], "answer": t["answer"]})
                .to_string()
                + "\n"
        })
        .collect();
    fs::write(dir.path().join("t.es.jsonl"), lines.concat()).unwrap();
    let same = translate("file", &["--engine", "file", "--file", &at("t.{target}.jsonl")]);
    for (a, b) in own.iter().zip(&same) {
        assert_eq!(a["translations"]["es"]["answer"], b["translations"]["es"]["answer"]);
    }
    fs::write(dir.path().join("t.es.jsonl"), lines[1..].concat()).unwrap();
    let missing = [
        "translate",
        "--input",
        &at("g"),
        "--out",
        &at("x"),
        "--target-languages",
        "es",
        "--engine",
        "file",
        "--file",
        &at("t.es.jsonl"),
    ];
    fails(&missing, &["t.es.jsonl", "no row with id"]);
    // Scorers.
    let score = |out: &str, more: &[&str]| {
        let base = ["score", "--input", &at("file"), "--out", &at(out), "--target-languages", "es"]
            .map(String::from);
        ok(&base.iter().map(String::as_str).chain(more.iter().copied()).collect::<Vec<_>>());
        rows(&at(out))
    };
    let scored = score(
        "counted",
        &["--engine", "command", "--command", "while read line; do echo 0.5; done", "--aggregate", "min"],
    );
    assert_eq!(scored[0]["scores"]["es"]["sides"]["answer"], 0.5);
    let t = &own[0]["translations"]["es"];
    let pair =
        format!("{}\t{}\t0.25\n", own[0]["answer"]["text"].as_str().unwrap(), t["answer"].as_str().unwrap());
    fs::write(dir.path().join("scores.tsv"), pair).unwrap();
    let args = [
        "score",
        "--input",
        &at("file"),
        "--out",
        &at("y"),
        "--target-languages",
        "es",
        "--engine",
        "file",
        "--file",
        &at("scores.tsv"),
    ];
    fails(&args, &["scores.tsv", "has no score for"]);
}

/// The rows that a stage wrote.
fn rows(dir: &str) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(Path::new(dir).join("rows-00000.jsonl")).unwrap();
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

/// Every kind of task; and a model compared with itself does not differ.
#[test]
fn evaluation_runs_every_kind_of_task_and_compares() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_string_lossy().to_string();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    write("en.txt", "I see a duck.\nThe baker is in the city.\n");
    write("es.txt", "Veo un pato.\nEl panadero está en la ciudad.\n");
    write(
        "exams.jsonl",
        "{\"question\": {\"stem\": \"What is red?\", \"choices\": [{\"text\": \"a colour\", \"label\": \"A\"}, {\"text\": \"a duck\", \"label\": \"B\"}]}, \"answerKey\": \"A\"}\n",
    );
    write(
        "belebele.jsonl",
        "{\"flores_passage\": \"A duck.\", \"question\": \"What?\", \"mc_answer1\": \"a duck\", \"mc_answer2\": \"b\", \"mc_answer3\": \"c\", \"mc_answer4\": \"d\", \"correct_answer_num\": \"1\"}\n",
    );
    let task = |name: &str, kind: &str, file: &str, more: &str| {
        format!(
            "[[tasks]]\nname = \"{name}\"\nkind = \"{kind}\"\nlanguage = \"es\"\nfile = \"{}\"\n{more}\n",
            at(file)
        )
    };
    let tasks = [
        task("ppl", "perplexity", "es.txt", ""),
        task(
            "mt",
            "translation",
            "en.txt",
            &format!("reference = \"{}\"\nmax-new-tokens = 16", at("es.txt")),
        ),
        task("exams", "multiple-choice", "exams.jsonl", "choices = \"texts\""),
        task("belebele", "multiple-choice", "belebele.jsonl", "few-shot = 1"),
        "[[tasks]]\nname = \"qa\"\nkind = \"qa\"\nlanguage = \"es\"\nfile = \"assets/quickstart/world/test.es.jsonl\"\nlimit = 5\nmax-new-tokens = 16\n"
            .to_string(),
    ];
    write("tasks.toml", &tasks.concat());
    let model = "assets/quickstart/model";
    let shown = ok(&["eval", "--model", model, "--tasks", &at("tasks.toml"), "--out", &at("a")]);
    for metric in ["bits per byte", "BLEU", "chrF++", "accuracy %", "exact match %", "off target %"] {
        assert!(shown.contains(metric), "{metric}: {shown}");
    }
    let results: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(dir.path().join("a/results.json")).unwrap()).unwrap();
    assert!(
        results["results"]["belebele"]["acc,none"].is_number()
            && results["results"]["mt"]["bleu,none"].is_number()
    );
    assert!(results["configs"]["mt"]["signature"]["bleu"].as_str().unwrap().contains("tok:13a"));
    let shown = ok(&[
        "eval",
        "--model",
        model,
        "--tasks",
        &at("tasks.toml"),
        "--out",
        &at("b"),
        "--compare",
        &at("a"),
    ]);
    assert!(shown.contains("+0.0 (+0.0 .. +0.0)"), "{shown}");
    write("tasks.toml", &task("mt", "translation", "en.txt", ""));
    fails(
        &["eval", "--model", model, "--tasks", &at("tasks.toml"), "--out", &at("c")],
        &["task mt", "reference"],
    );
}

#[test]
fn no_sibling_of_a_held_out_row_is_trained_on() {
    let dir = tempfile::tempdir().unwrap();
    let args = small(dir.path());
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    ok(&args);
    let text = fs::read_dir(dir.path().join("assemble-sdrrl"))
        .unwrap()
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.extension().is_some_and(|e| e == "jsonl"));
    let rows: Vec<serde_json::Value> = text
        .flat_map(|p| {
            fs::read_to_string(p)
                .unwrap()
                .lines()
                .map(|l| serde_json::from_str(l).unwrap())
                .collect::<Vec<_>>()
        })
        .collect();
    let of = |split: &str| -> std::collections::BTreeSet<String> {
        rows.iter().filter(|r| r["split"] == split).map(|r| r["row"].to_string()).collect()
    };
    assert!(!of("validation").is_empty() && of("validation").is_disjoint(&of("train")));
}

#[test]
fn bad_input_is_named_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path.to_string_lossy().to_string()
    };
    let out = dir.path().join("out").to_string_lossy().to_string();
    let questions = "assets/quickstart/world/questions.en.jsonl";
    let good = write("good.jsonl", b"{\"instruction\": \"What is the job of Palal?\"}\n");
    // Models.
    fails(&["generate", "--model", "no/such-model", "--prompts", &good, "--out", &out], &["no/such-model"]);
    let gguf = write("cut.gguf", b"GGUF\x03\0\0\0\x01\0\0\0");
    fails(&["generate", "--model", &gguf, "--prompts", &good, "--out", &out], &["cut.gguf"]);
    let copy = dir.path().join("model");
    fs::create_dir_all(&copy).unwrap();
    for entry in fs::read_dir("assets/quickstart/model").unwrap().flatten() {
        fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
    }
    let weights = copy.join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    let model = copy.to_string_lossy().to_string();
    fails(&["generate", "--model", &model, "--prompts", &good, "--out", &out], &["model.safetensors"]);
    fs::write(&weights, &bytes).unwrap();
    fs::write(copy.join("tokenizer.json"), "{").unwrap();
    fails(&["generate", "--model", &model, "--prompts", &good, "--out", &out], &["tokenizer.json"]);
    // Rows.
    let model = "assets/quickstart/model";
    let broken = write("broken.jsonl", b"{\"instruction\": \"a\"}\n{\"instruction\": \n");
    fails(&["generate", "--model", model, "--prompts", &broken, "--out", &out], &["broken.jsonl:2"]);
    let lacking = write("lacking.jsonl", b"{\"text\": \"a\"}\n");
    fails(
        &["generate", "--model", model, "--prompts", &lacking, "--out", &out],
        &["lacking.jsonl:1", "instruction"],
    );
    // Recipes.
    fails(&["run", "no.toml"], &["no.toml", "recipes/quickstart.toml"]);
    fails(&["run", "recipes/quickstart.toml", "--set", "filter.taw=1"], &["taw", "did you mean `tau`?"]);
    let recipe = write("r.toml", b"name = \"x\"\nwork = \n");
    fails(&["run", &recipe], &["r.toml", "line 2"]);
    // Translators and dictionaries.
    ok(&[
        "generate",
        "--model",
        model,
        "--prompts",
        questions,
        "--out",
        &out,
        "--limit",
        "3",
        "--max-new-tokens",
        "32",
    ]);
    let es = |more: &[&str]| -> Vec<String> {
        let base = ["translate", "--input", &out, "--out", &format!("{out}-t"), "--target-languages", "es"]
            .map(String::from);
        base.into_iter().chain(more.iter().map(|s| s.to_string())).collect()
    };
    for (more, parts) in [
        (vec!["--engine", "command", "--command", "head -n 1"], vec!["head -n 1", "ended"]),
        (vec!["--engine", "command", "--command", "sed 1d", "--protocol", "batch"], vec!["sed 1d", "ended"]),
        (vec!["--engine", "command", "--command", "sleep 9", "--timeout", "0.2"], vec!["sleep 9", "0.2 s"]),
        (vec!["--engine", "dictionary"], vec!["translate.file"]),
        (vec!["--file", "no.tsv"], vec!["no.tsv"]),
        (vec!["--file", good.as_str()], vec!["good.jsonl", "no dictionary"]),
    ] {
        let args = es(&more);
        // A JSON line has a space, so that it reads as a MUSE pair; the table then knows nothing, which is no error.
        if more == ["--file", good.as_str()] {
            continue;
        }
        fails(&args.iter().map(String::as_str).collect::<Vec<_>>(), &parts);
    }
    // A language that nobody knows.
    let args = ["filter", "--input", &out, "--out", &format!("{out}-f"), "--target-languages", "xx"];
    fails(&args, &["`xx` is not known"]);
    // A stage whose input lacks what it needs.
    let args = ["filter", "--input", &out, "--out", &format!("{out}-f"), "--target-languages", "es"];
    fails(&args, &["no translation into es", "translate"]);
    // Files that are no pair.
    let (a, b) = (write("p.en", b"one two three\nfour five six\n"), write("p.es", b"uno dos tres\n"));
    let args = [
        "parallel",
        "--out",
        &format!("{out}-p"),
        "--target-languages",
        "es",
        "--file",
        &a,
        "--target-file",
        &b,
    ];
    fails(&args, &["p.es has 1 lines", "line 2"]);
    // Token shards.
    let shard = write("shards/train.tokens", b"SDRRLTK1 cut");
    fails(&["inspect", &shard, "--model", model], &["train.tokens", "pack"]);
    fails(
        &[
            "train",
            "--model",
            model,
            "--shards",
            &format!("{}/shards", dir.path().display()),
            "--out",
            &format!("{out}-l"),
        ],
        &["train.tokens"],
    );
    // Another stage's folder.
    let args = ["pack", "--model", model, "--examples", &good, "--out", &out];
    fails(&args, &["is the folder of generate", "choose another folder"]);
}

/// A file size limit stands for a full disk: the write error names the file, and afterwards the run goes on to the same result.
#[test]
fn a_write_that_fails_is_named_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, broken) = (dir.path().join("whole"), dir.path().join("broken"));
    let args = small(&broken);
    let quoted: Vec<String> = args.iter().map(|a| format!("'{a}'")).collect();
    // Blocks of 512 bytes: the adapter's checkpoints (860 KB) do not fit, the rows do.
    let command = format!(
        "trap '' XFSZ; ulimit -f 600; exec '{}' {}",
        program().get_program().display(),
        quoted.join(" ")
    );
    let out = Command::new("sh").args(["-c", &command]).output().unwrap();
    let message = text(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{message}");
    assert!(
        message.contains("write") && message.contains(".safetensors") && message.contains("File too large"),
        "{message}"
    );
    for run in [&whole, &broken] {
        let args = small(run);
        ok(&args.iter().map(String::as_str).collect::<Vec<_>>());
    }
    assert!(contents(&whole) == contents(&broken), "the repaired run differs");
}

#[test]
fn doctor_and_help_work_everywhere() {
    assert!(ok(&["doctor"]).contains("threads"));
    let help = ok(&["--help"]);
    for stage in [
        "run",
        "generate",
        "translate",
        "score",
        "filter",
        "code-switch",
        "parallel",
        "assemble",
        "pack",
        "train",
        "merge",
        "inspect",
        "eval",
    ] {
        assert!(help.contains(&format!("  {stage}")), "{stage}: {help}");
    }
    for code in ["  0  done", "  1  failed", "  2  wrong usage", " 69  ", " 75  ", "130  "] {
        assert!(help.contains(code), "{code}: {help}");
    }
    assert_eq!(sdrrl(&["trian"]).status.code(), Some(2), "wrong usage");
}

/// A matrix of three arms on a small quickstart: stages are shared, a killed one goes on, bad ones are refused at once.
/// A matrix of four arms, two of which are one training.
const MATRIX: &str = r#"
name = "small"
work = "WORK"
recipe = "recipes/quickstart.toml"
set = ["generate.limit=80", "train.max-steps=8", "train.eval-every=4", "eval.bootstrap-samples=50", "eval.while-training=3"]
[[arms]]
name = "full"
[[arms]]
name = "no-parallel"
set = ["assemble.use-parallel=false"]
[[sweeps]]
name = "tau"
key = "filter.tau"
values = [0.8, 0.9]
"#;

#[test]
fn an_ablation_shares_its_stages_and_ends_with_the_same_bytes_after_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.toml");
    let at = |name: &str| dir.path().join(name);
    let run = |name: &str| {
        fs::write(&file, MATRIX.replace("WORK", &at(name).to_string_lossy())).unwrap();
        vec!["ablate".to_string(), file.to_string_lossy().to_string()]
    };
    let args = run("whole");
    let dry = || {
        let args = args.iter().map(String::as_str).chain(["--dry-run"]);
        ok(&args.collect::<Vec<_>>())
    };
    // Shared stages once; nothing is written.
    let planned = dry();
    assert!(!at("whole").exists() && planned.lines().all(|l| l.contains("will run")), "{planned}");
    assert_eq!(planned.matches("cache/generate-").count(), 1, "{planned}");
    let out = ok(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let planned = dry();
    assert!(planned.lines().count() > 10 && planned.lines().all(|l| l.contains("unchanged")), "{planned}");
    assert!(out.contains("no-parallel") && out.contains("(same training as full)"), "{out}");
    let folders = |stage: &str| {
        let all = fs::read_dir(at("whole").join("cache")).unwrap().flatten();
        all.filter(|e| e.file_name().to_string_lossy().starts_with(stage)).count()
    };
    // Four arms: one set of answers, two verdict sets at most, two or three trainings.
    assert_eq!(
        (folders("generate-"), folders("translate-"), folders("score-"), folders("filter-")),
        (1, 1, 1, 2)
    );
    assert!(folders("train-") < 4, "{}", folders("train-"));
    let page = fs::read_to_string(at("whole").join("report.html")).unwrap();
    for part in ["Conclusions", "Figure 1.", "Table 1.", "English held-out loss", "filter.tau"] {
        assert!(page.contains(part), "{part}");
    }
    let args = run("killed");
    let mut child = Command::new(env!("CARGO_BIN_EXE_sdrrl"))
        .args(&args)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    thread::sleep(Duration::from_secs(2));
    child.kill().unwrap();
    child.wait().unwrap();
    ok(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let results = |name: &str| fs::read(at(name).join("results.json")).unwrap();
    assert!(results("whole") == results("killed"));
    fs::write(&file, MATRIX.replace("filter.tau", "filter.taw")).unwrap();
    fails(&["ablate", &file.to_string_lossy()], &["tau-0.8", "taw", "did you mean `tau`?"]);
}

/// Task files and data that are wrong: named errors, before the model (which is not even there) is looked for.
#[test]
fn wrong_tasks_are_named_before_anything_is_computed() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_string_lossy().to_string();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    write("qa.jsonl", "{\"id\": 1, \"question\": \"q\", \"answers\": [\"a\"]}\n");
    write(
        "twice.jsonl",
        "{\"id\": 1, \"question\": \"q\", \"answers\": [\"a\"]}\n{\"id\": 1, \"question\": \"r\", \"answers\": [\"a\"]}\n",
    );
    write("nogold.jsonl", "{\"question\": \"q\"}\n");
    write("range.jsonl", "{\"question\": \"q\", \"choices\": [\"a\", \"b\"], \"answer\": 2}\n");
    write(
        "belebele.jsonl",
        "{\"flores_passage\": \"p\", \"question\": \"q\", \"mc_answer1\": \"a\", \"mc_answer2\": \"b\", \"mc_answer3\": \"c\", \"mc_answer4\": \"d\", \"correct_answer_num\": \"5\"}\n",
    );
    write("xlsum.jsonl", "{\"text\": \"t\", \"summary\": \"\"}\n");
    write("two", "a\nb\n");
    write("three", "a\nb\nc\n");
    write("empty.jsonl", "");
    let (two, three) = (at("two"), at("three"));
    let cases = [
        ("qa", "qa.jsonl", "metrics = [\"bleuu\"]", "did you mean `bleu`?"),
        ("qa", "twice.jsonl", "", "the id 1 occurred before"),
        ("qa", "nogold.jsonl", "", "expected `question` (a text) and `answers` (texts)"),
        ("qa", "empty.jsonl", "", "has no rows"),
        ("qa", "qa.jsonl", "prompt = \"Answer.\"", "`prompt` needs {text}"),
        ("multiple-choice", "range.jsonl", "", "`answer` is 2: the right answer is none of the 2 choices"),
        ("multiple-choice", "belebele.jsonl", "", "`correct_answer_num` is \"5\""),
        ("multiple-choice", "belebele.jsonl", "metrics = [\"bleu\"]", "`metrics` are of generated replies"),
        ("summary", "xlsum.jsonl", "", "the text `summary` is missing"),
        ("translation", "two", &format!("reference = {three:?}"), "has 2 lines"),
    ];
    for (kind, file, more, part) in cases {
        let path = if file == "two" { two.clone() } else { at(file) };
        write(
            "tasks.toml",
            &format!(
                "[[tasks]]\nname = \"t\"\nkind = {kind:?}\nlanguage = \"es\"\nfile = {path:?}\n{more}\n"
            ),
        );
        fails(&["eval", "--model", &at("none"), "--tasks", &at("tasks.toml"), "--out", &at("out")], &[part]);
    }
}
