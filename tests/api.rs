//! The crate as a library: the facade at its root, errors by kind, and the programs in examples/.
use std::{fs, path::Path};

use sdrrl::{
    AnswerOptions, Conversation, DeviceChoice, Error, EvalSettings, EvalTask, Finish, LoadOptions, Model,
    Role, ScoreEngine, ScoreOptions, ScoreSettings, TaskKind, TrainData, TrainOptions, TrainSettings,
    TranslationScorer, Turn, train,
};

#[allow(dead_code)]
#[path = "../examples/evaluate.rs"]
mod example_evaluate;
#[allow(dead_code)]
#[path = "../examples/generate.rs"]
mod example_generate;
#[allow(dead_code)]
#[path = "../examples/train_adapter.rs"]
mod example_train_adapter;

const MODEL: &str = "assets/quickstart/model";
const WORLD: &str = "assets/quickstart/world";

fn model() -> Model {
    Model::load(MODEL, &LoadOptions::default()).unwrap()
}

fn short() -> AnswerOptions {
    AnswerOptions { max_new_tokens: Some(12), ..AnswerOptions::default() }
}

fn examples() -> Vec<Conversation> {
    let rows = [("Who is Bela?", "A cook."), ("Who is Dino?", "A smith."), ("Who is Elma?", "A tailor.")];
    rows.iter().map(|(q, a)| Conversation::from(*q).answered(a)).collect()
}

fn few_steps() -> TrainOptions {
    let train =
        TrainSettings { lora_rank: 2, max_steps: 2, batch_documents: Some(2), ..TrainSettings::default() };
    TrainOptions { train, ..TrainOptions::default() }
}

/// The kind, and that the message is whole.
macro_rules! kind {
    ($result:expr, $parts:expr, $pattern:pat $(if $guard:expr)?) => {{
        let error = $result.map(|_| ()).unwrap_err();
        let message = error.to_string();
        for part in $parts {
            assert!(message.contains(part), "{part:?} is not in: {message}");
        }
        assert!(matches!(&error, $pattern $(if $guard)?), "{error:?}");
    }};
}

#[test]
fn answers_do_not_depend_on_company_or_on_how_a_question_is_written() {
    let model = model();
    let questions = ["What is the pet of Palal?", "What is the job of Palal?"];
    let all = model.generate(&questions, &short()).unwrap();
    assert_eq!(all.len(), 2);
    for (question, reply) in questions.iter().zip(&all) {
        let turns = Conversation::from(vec![Turn::new(Role::User, question)]);
        assert_eq!(&model.generate(&[turns], &short()).unwrap()[0], reply);
        let ids = model.answerer().tokenizer.decode(&reply.ids).unwrap();
        assert_eq!(ids.trim(), reply.text);
    }
    assert!(all.iter().any(|r| r.finish == Finish::Stop));
    let cut = model.generate(&questions, &AnswerOptions { max_new_tokens: Some(1), ..short() }).unwrap();
    assert!(cut.iter().all(|r| r.finish == Finish::Length && r.ids.len() == 1));
    assert_eq!(model.generate::<&str>(&[], &short()).unwrap(), []);
}

#[test]
fn what_cannot_be_answered_is_named() {
    let model = model();
    let answered = Conversation::from("Who?").answered("Me.");
    kind!(
        model.generate(&[answered], &short()),
        ["prompt 0", "ends with a turn of the user"],
        Error::BadInput { .. }
    );
    kind!(model.generate(&[Conversation::default()], &short()), ["prompt 0"], Error::BadInput { .. });
    let long = "red ".repeat(5000);
    kind!(model.generate(&[long.as_str()], &short()), ["shorten it"], Error::BadInput { place, .. } if place == "row 0");
    for (options, named) in [
        (AnswerOptions { max_new_tokens: Some(0), ..short() }, "max-new-tokens"),
        (AnswerOptions { top_p: Some(1.5), ..short() }, "top-p"),
        (AnswerOptions { temperature: Some(f32::NAN), ..short() }, "temperature"),
        (AnswerOptions { repetition_penalty: Some(-1.0), ..short() }, "repetition-penalty"),
    ] {
        kind!(model.generate(&["Who?"], &options), [named], Error::Setting { name, .. } if name == named);
    }
}

/// A copy of the embedded model with changes.
fn changed(dir: &Path, file: &str, change: impl Fn(String) -> Vec<u8>) -> String {
    for entry in fs::read_dir(MODEL).unwrap().flatten() {
        fs::copy(entry.path(), dir.join(entry.file_name())).unwrap();
    }
    let text = String::from_utf8_lossy(&fs::read(dir.join(file)).unwrap()).into_owned();
    fs::write(dir.join(file), change(text)).unwrap();
    dir.to_string_lossy().into_owned()
}

#[test]
fn models_that_cannot_be_loaded_are_told_apart() {
    let load = |path: &str, options: LoadOptions| Model::load(path, &options);
    let plain = LoadOptions::default;
    kind!(load("no/such-model", plain()), ["no/such-model"], Error::NotFound { path, .. } if path == Path::new("no/such-model"));
    kind!(load("./nothing", plain()), ["nothing"], Error::NotFound { .. });
    let adapter = Some("no-adapter".into());
    kind!(load(MODEL, LoadOptions { adapter, ..plain() }), ["an adapter is"], Error::NotFound { path, .. } if path.starts_with("no-adapter"));
    let template = "no-template".into();
    kind!(load(MODEL, LoadOptions { template, ..plain() }), ["no-template"], Error::Setting { name, .. } if name == "template");
    kind!(load(MODEL, LoadOptions { device: DeviceChoice::Cuda(77), ..plain() }), ["cuda:77"], Error::NoDevice { device, .. } if device == "cuda:77");
    let dir = tempfile::tempdir().unwrap();
    let config = |from: &str, to: &str| {
        let change = |text: String| {
            assert!(text.contains(from), "{text}");
            text.replace(from, to).into_bytes()
        };
        load(&changed(dir.path(), "config.json", change), plain())
    };
    kind!(config("\"llama\"", "\"mamba\""), ["mamba", "can be read"], Error::Unsupported { what, .. } if what == "mamba");
    kind!(config("\"silu\"", "\"relu\""), ["hidden_act relu"], Error::Unsupported { .. });
    kind!(config("{", "{\"new_scale\": 3.0,"), ["new_scale"], Error::Unsupported { what, .. } if what == "new_scale");
    kind!(config("{", "{,"), ["config.json", "not JSON"], Error::BadInput { .. });
    let cut = |text: String| text.into_bytes()[..100].to_vec();
    kind!(load(&changed(dir.path(), "model.safetensors", cut), plain()), ["model.safetensors"], Error::BadInput { place, .. } if place.ends_with("model.safetensors"));
    let junk = dir.path().join("x.gguf");
    fs::write(&junk, "GGUF").unwrap();
    kind!(load(junk.to_str().unwrap(), plain()), ["not a usable GGUF file"], Error::BadInput { place, .. } if place.ends_with("x.gguf"));
}

#[test]
fn a_training_is_found_again_and_used() {
    let dir = tempfile::tempdir().unwrap();
    let (work, examples) = (dir.path().join("w"), examples());
    let data = TrainData::Conversations(&examples);
    let first = train(MODEL, data, &work, &few_steps()).unwrap();
    assert_eq!((first.documents, first.steps, first.best), (3, 2, None));
    assert!(
        first.loss.is_finite()
            && first.dropped.is_empty()
            && first.folder.join("adapter_model.safetensors").exists()
    );
    assert_eq!(train(MODEL, data, &work, &few_steps()).unwrap(), first);

    // The same rows in a file, and as packed tokens: the same adapter.
    let rows: Vec<String> =
        examples.iter().map(|c| serde_json::json!({"messages": c.turns()}).to_string()).collect();
    let file = dir.path().join("rows.jsonl");
    fs::write(&file, rows.join("\n")).unwrap();
    let adapter = |folder: &Path| fs::read(folder.join("adapter_model.safetensors")).unwrap();
    let of_file = train(MODEL, TrainData::File(&file), &dir.path().join("f"), &few_steps()).unwrap();
    assert!(adapter(&of_file.folder) == adapter(&first.folder));
    let packed = dir.path().join("f/pack");
    let of_tokens = train(MODEL, TrainData::Packed(&packed), &dir.path().join("p"), &few_steps()).unwrap();
    assert!(adapter(&of_tokens.folder) == adapter(&first.folder));

    // Other settings do not replace it, unless asked to.
    let mut other = few_steps();
    other.train.lr = Some(3e-3);
    kind!(train(MODEL, data, &work, &other), ["settings.lr"], Error::Exists { path, .. } if path == &first.folder);
    other.replace = true;
    let second = train(MODEL, data, &work, &other).unwrap();
    assert!(adapter(&second.folder) != adapter(&of_file.folder));

    let load = LoadOptions { adapter: Some(second.folder), ..LoadOptions::default() };
    assert_eq!(Model::load(MODEL, &load).unwrap().generate(&["Who is Bela?"], &short()).unwrap().len(), 1);
    // It belongs to that model alone.
    kind!(Model::load("tests/golden/models/qwen2", &load), [""], _);
}

#[test]
fn rows_and_settings_that_cannot_be_trained_on_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let work = dir.path().join("w");
    let mut bad = examples();
    bad.insert(1, "Who answers?".into());
    let data = TrainData::Conversations(&bad);
    kind!(train(MODEL, data, &work, &few_steps()), ["no answer"], Error::BadInput { place, .. } if place == "conversation 1");
    assert!(!work.exists(), "nothing was begun");
    let mut skipping = few_steps();
    skipping.pack.on_bad_row = sdrrl::data::tally::OnBadRow::Skip;
    let trained = train(MODEL, data, &work, &skipping).unwrap();
    assert_eq!((trained.documents, trained.dropped.values().sum::<usize>()), (3, 1));
    skipping.pack.max_length = 4;
    skipping.replace = true;
    kind!(train(MODEL, data, &work, &skipping), ["no training document is left"], _);

    let file = dir.path().join("rows.jsonl");
    fs::write(&file, "{\"question\": \"a\", \"answer\": \"b\"}\n{\"question\": 3, \"answer\": []}\n")
        .unwrap();
    let of_file = || train(MODEL, TrainData::File(&file), &dir.path().join("f"), &few_steps());
    kind!(of_file(), ["rows.jsonl:2"], Error::BadInput { place, .. } if place.ends_with("rows.jsonl:2"));
    fs::remove_file(&file).unwrap();
    kind!(of_file(), ["rows.jsonl"], Error::NotFound { path, .. } if path == &file);
    let good = examples();
    type Change = fn(&mut TrainSettings);
    let settings: [(&str, Change); 6] = [
        ("train.lr", |s| s.lr = Some(-1.0)),
        ("train.epochs", |s| s.epochs = f64::NAN),
        ("train.warmup-ratio", |s| s.warmup_ratio = 1.5),
        ("train.beta2", |s| s.beta2 = 1.0),
        ("train.batch-documents", |s| s.batch_documents = Some(0)),
        ("train.lora-rank", |s| s.lora_rank = 0),
    ];
    for (named, change) in settings {
        let mut options = few_steps();
        change(&mut options.train);
        let work = dir.path().join("s");
        let result = train(MODEL, TrainData::Conversations(&good), &work, &options);
        kind!(result, [""], Error::Setting { name, .. } if name == named);
    }
    // A folder that is somebody else's.
    let foreign = dir.path().join("foreign");
    fs::create_dir_all(foreign.join("train")).unwrap();
    fs::write(foreign.join("train/adapter_config.json"), "mine").unwrap();
    kind!(
        train(MODEL, TrainData::Conversations(&good), &foreign, &few_steps()),
        ["train did not write it"],
        Error::Exists { .. }
    );
    assert_eq!(fs::read_to_string(foreign.join("train/adapter_config.json")).unwrap(), "mine");
    // A folder that cannot be made.
    fs::write(dir.path().join("file"), "").unwrap();
    let under = dir.path().join("file/w");
    kind!(
        train(MODEL, TrainData::Conversations(&good), &under, &few_steps()),
        ["file"],
        Error::CannotWrite { .. }
    );
}

#[test]
fn a_folder_that_another_process_holds_is_locked() {
    let dir = tempfile::tempdir().unwrap();
    let (work, examples) = (dir.path().join("w"), examples());
    fs::create_dir_all(work.join("train")).unwrap();
    let held = sdrrl::pipeline::lock::folder(&work.join("train"), "another").unwrap();
    let again = || train(MODEL, TrainData::Conversations(&examples), &work, &few_steps());
    let pid = format!("process {}", std::process::id());
    kind!(again(), ["is being written by"], Error::Locked { path, holder, .. } if *path == work.join("train") && holder.contains(&pid));
    drop(held);
    again().unwrap();
}

#[test]
fn an_evaluation_gives_the_numbers_of_the_command_with_intervals() {
    let dir = tempfile::tempdir().unwrap();
    let task = |name: &str| EvalTask {
        limit: 12,
        max_new_tokens: 16,
        ..EvalTask::new(name, TaskKind::Qa, "es", format!("{WORLD}/test.es.jsonl"))
    };
    let settings = EvalSettings { tasks: vec![task("one"), task("two")], ..EvalSettings::default() };
    let out = dir.path().join("out");
    let measured = model().evaluate(&settings, &out).unwrap();
    assert_eq!(measured.len(), 6, "three metrics of two tasks");
    for m in &measured {
        let (low, high) = m.interval.unwrap();
        assert!(low <= m.value && m.value <= high && m.samples == 12, "{m:?}");
    }
    assert!(measured.iter().any(|m| m.interval.unwrap().0 < m.interval.unwrap().1));
    assert_eq!(model().evaluate(&settings, &out).unwrap(), measured);
    let tasks = dir.path().join("tasks.toml");
    fs::write(&tasks, toml::to_string(&settings).unwrap()).unwrap();
    let by_hand = dir.path().join("by-hand");
    crate::cli::ok(&[
        "eval",
        "--model",
        MODEL,
        "--tasks",
        tasks.to_str().unwrap(),
        "--out",
        by_hand.to_str().unwrap(),
    ]);
    let results = |dir: &Path| fs::read_to_string(dir.join("results.json")).unwrap();
    assert_eq!(results(&out), results(&by_hand));
    let value: serde_json::Value = serde_json::from_str(&results(&out)).unwrap();
    for m in &measured {
        assert_eq!(value["results"][&m.task][format!("{},none", m.metric)].as_f64(), Some(m.value));
    }

    let wrong = |tasks: Vec<EvalTask>| model().evaluate(&EvalSettings { tasks, ..settings.clone() }, &out);
    kind!(wrong(vec![]), ["empty"], Error::Setting { name, .. } if name == "eval.tasks");
    kind!(wrong(vec![task("one"), task("one")]), ["occurs twice"], Error::Setting { .. });
    kind!(
        wrong(vec![EvalTask { language: "xx-none".into(), ..task("x") }]),
        ["task x", "xx-none"],
        Error::Setting { .. }
    );
    kind!(wrong(vec![EvalTask { file: "nowhere.jsonl".into(), ..task("x") }]), ["task x"], Error::NotFound { path, .. } if path == Path::new("nowhere.jsonl"));
    kind!(
        wrong(vec![EvalTask { file: "README.md".into(), ..task("x") }]),
        ["README.md"],
        Error::BadInput { .. }
    );
}

#[test]
fn translations_are_scored_by_any_engine() {
    let of = |settings: ScoreSettings| ScoreOptions { settings, ..ScoreOptions::default() };
    let file = |name: &str| Some(format!("{WORLD}/{name}").into());
    let mut builtin = TranslationScorer::load(&of(ScoreSettings {
        file: file("words.{source}-{target}.txt"),
        ..Default::default()
    }))
    .unwrap();
    let pairs = [
        ("The tailor likes soup.", "Al sastre le gusta la sopa."),
        ("The tailor likes soup.", "The tailor."),
    ];
    let scores = builtin.score(&pairs).unwrap();
    assert!(scores.len() == 2 && scores[0] > scores[1], "{scores:?}");
    assert!(builtin.name().contains("words.en-es.txt"), "{}", builtin.name());
    let kiwi = ScoreSettings {
        engine: ScoreEngine::Cometkiwi,
        model: Some(crate::qe::MODEL.into()),
        ..Default::default()
    };
    let golden = crate::qe::golden();
    let row = &golden["pairs"][0];
    let pair = (row["source"].as_str().unwrap(), row["translation"].as_str().unwrap());
    let score = TranslationScorer::load(&of(kiwi)).unwrap().score(&[pair]).unwrap()[0];
    assert!((score - row["score"].as_f64().unwrap()).abs() < 1e-4, "{score}");
    let load = |settings: ScoreSettings| TranslationScorer::load(&of(settings)).map(|_| ());
    let engine = |engine| ScoreSettings { engine, ..Default::default() };
    kind!(load(engine(ScoreEngine::Similarity)), ["score.model"], Error::Setting { name, .. } if name == "score.model");
    kind!(load(engine(ScoreEngine::Command)), ["score.command"], Error::Setting { name, .. } if name == "score.command");
    kind!(load(engine(ScoreEngine::Builtin)), ["score.file"], Error::Setting { name, .. } if name == "score.file");
    kind!(
        load(ScoreSettings { file: file("none.txt"), ..Default::default() }),
        ["none.txt"],
        Error::NotFound { .. }
    );
}

#[test]
fn the_examples_run() {
    let dir = tempfile::tempdir().unwrap();
    example_generate::run(MODEL, &[]).unwrap();
    example_evaluate::run(&dir.path().join("eval")).unwrap();
    let work = dir.path().join("work");
    example_train_adapter::run(&work).unwrap();
    let load = LoadOptions { adapter: Some(work.join("train")), ..LoadOptions::default() };
    let replies =
        Model::load(MODEL, &load).unwrap().generate(&["Which bird does Tamir feed?"], &short()).unwrap();
    assert!(replies[0].text.starts_with("Tamir feeds a heron"), "{}", replies[0].text);
}
