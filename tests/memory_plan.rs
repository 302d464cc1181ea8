//! The memory that a plan names before anything is there is what is allocated: of training steps in every setting, of sessions, and by command, of the stage `train`.
use std::fs;

use sdrrl::{
    bench::models::{config, random_decoder},
    device::{Device, DeviceChoice},
    infer::session::{Room, Session},
    models::{
        transformer::{
            lora::{Lora, LoraConfig},
            train_step::{TrainStep, Trainable, outline::Outline},
            weight::ComputeType,
            weights::Transformer,
        },
        weights::WeightSource,
    },
    ops::kl_divergence::Mixed,
    tensor::{Activations, DType},
    train::optimizer::{OptimizerKind, state_bytes},
};

use crate::cli::{fails, ok};

const OPTIMIZERS: [OptimizerKind; 4] =
    [OptimizerKind::Adamw, OptimizerKind::Adamw8bit, OptimizerKind::Adafactor, OptimizerKind::Muon];

/// What the base model's states are for.
#[derive(Clone, Copy, PartialEq)]
enum Base {
    Keeps,
    Distils,
}

/// What a step has allocated and what its outline says, with the optimizers' states.
/// With `base` what keeps source rows or learns from the model's own answers comes on top.
fn compare(model: &Transformer, lora: Option<LoraConfig>, n: usize, base: Option<Base>, what: &str) {
    let on_gpu = model.device() != Device::Cpu;
    let acts = model.compute.activations(&model.device());
    let outline = Outline {
        spec: &model.spec,
        weights: model.bytes(),
        lora: lora.clone(),
        max_tokens: n,
        acts,
        on_gpu,
        keeps_source: base == Some(Base::Keeps),
        distils: base == Some(Base::Distils),
    };
    let (planned, shapes) = outline.measure().unwrap();
    let trainable =
        lora.map_or(Trainable::Full, |config| Trainable::Lora(Lora::init(model, config, 1).unwrap()));
    let step = TrainStep::new(model, trainable, n).unwrap();
    let step = match base {
        Some(Base::Keeps) => step.keep_source(model, Some(Mixed { hard: 0.0, soft: 1.0 })).unwrap(),
        Some(Base::Distils) => step.distilling(model, None).unwrap(),
        None => step,
    };
    assert_eq!(planned, step.memory(), "{what}");
    assert!(planned.iter().all(|(_, bytes)| *bytes > 0), "{what}: {planned:?}");
    let params = step.params(model);
    for kind in OPTIMIZERS {
        assert_eq!(state_bytes(&shapes, kind), state_bytes(&params, kind), "{what}, {}", kind.name());
    }
    assert_eq!(shapes.len(), params.len(), "{what}");
    assert!(shapes.iter().zip(&params).all(|(a, b)| a.name == b.name && a.kind == b.kind), "{what}");
}

fn settings() -> Vec<(&'static str, LoraConfig)> {
    let usual = LoraConfig::default;
    vec![
        ("usual", usual()),
        ("rank 3", LoraConfig { r: 3, ..usual() }),
        (
            "two modules",
            LoraConfig { target_modules: vec!["q_proj".into(), "down_proj".into()].into(), ..usual() },
        ),
        ("upper layer", LoraConfig { layers_to_transform: Some(vec![1]), ..usual() }),
        ("ranks by pattern", LoraConfig { rank_pattern: vec![("v_proj".into(), 5)], ..usual() }),
        ("DoRA", LoraConfig { use_dora: true, ..usual() }),
        ("dropout", LoraConfig { dropout: 0.1, ..usual() }),
        ("DoRA with dropout", LoraConfig { use_dora: true, dropout: 0.1, ..usual() }),
    ]
}

#[test]
fn a_step_takes_what_its_outline_says() {
    for (dtype, device) in
        [(DType::F32, "cpu"), (DType::Bf16, "cpu"), (DType::F32, "emulated"), (DType::Bf16, "emulated")]
    {
        let device = device.parse::<DeviceChoice>().unwrap().open().unwrap();
        let model = random_decoder(config("tiny").unwrap(), dtype, &device).unwrap();
        for (name, lora) in settings() {
            // DoRA's row norms begin on the processor.
            let on_gpu = device != Device::Cpu;
            if on_gpu && lora.use_dora {
                continue;
            }
            let what = format!("{name}, {dtype:?}, on a GPU {on_gpu}");
            for n in [1, 96, 2048] {
                compare(&model, Some(lora.clone()), n, None, &what);
            }
            for base in [Base::Keeps, Base::Distils] {
                compare(&model, Some(lora.clone()), 64, Some(base), &format!("{what}, base"));
            }
        }
    }
    let mut model = random_decoder(config("tiny").unwrap(), DType::Bf16, &Device::Cpu).unwrap();
    model.make_trainable().unwrap();
    compare(&model, None, 64, None, "full");
}

#[test]
fn weights_take_what_their_file_says() {
    let model = std::path::Path::new("tests/golden/gguf/chat.gguf");
    for path in [model, "assets/quickstart/model".as_ref()] {
        let (config, source) = WeightSource::open(path).unwrap();
        for (compute, blocks) in [
            (ComputeType::F32, false),
            (ComputeType::Bf16, false),
            (ComputeType::F32, true),
            (ComputeType::Bf16, true),
        ] {
            let planned = source.bytes_loaded(&config.spec().unwrap(), compute, blocks).unwrap();
            let loaded = Transformer::load_as(path, compute, blocks.then_some(Activations::F32)).unwrap();
            assert_eq!(planned, loaded.bytes(), "{path:?} {compute} {blocks}");
        }
    }
}

#[test]
fn a_session_takes_what_its_room_says() {
    for room in [
        Room { rows: 3, slots: 96, longest: 32, prompt_tokens: 40, listed: 0 },
        Room { rows: 1, slots: 7, longest: 7, prompt_tokens: 300, listed: 0 },
    ] {
        let device = "emulated".parse::<DeviceChoice>().unwrap().open().unwrap();
        let model = random_decoder(config("tiny").unwrap(), DType::F32, &device).unwrap();
        let gpu = device.gpu().unwrap();
        let before = gpu.peak_bytes();
        let session = Session::new(&model, room, None).unwrap();
        let taken = gpu.peak_bytes() - before;
        let planned: usize = room.bytes(&model.spec, DType::F32).iter().map(|(_, b)| b).sum();
        // Rotary tables and the sampler's lists come on top; the emulator aligns no tensors.
        let rest = taken as f64 - planned as f64;
        assert!((-2e3..3e5).contains(&rest), "{room:?}: {taken} taken, {planned} planned");
        drop(session);
    }
}

#[test]
fn the_plan_of_a_recipe_is_what_training_says_before_its_first_step() {
    let dir = tempfile::tempdir().unwrap();
    let examples: String = (0..64)
        .map(|i| format!("{{\"instruction\": \"What is {i}?\", \"output\": \"House {i} is red.\"}}\n"))
        .collect();
    fs::write(dir.path().join("e.jsonl"), examples).unwrap();
    for (i, train) in [
        "batch-tokens = 256",
        "lora-rank = 3\ndora = true\nbatch-tokens = 100",
        "optimizer = \"adafactor\"\nlora-dropout = 0.1\nbatch-tokens = 512",
        "method = \"full\"\noptimizer = \"muon\"\nbatch-tokens = 300",
    ]
    .iter()
    .enumerate()
    {
        let work = dir.path().join(format!("w{i}"));
        let recipe = dir.path().join("r.toml");
        let text = format!(
            "name = \"r\"\nwork = {work:?}\nmodel = \"assets/quickstart/model\"\nexamples = \"e.jsonl\"\n[train]\nmax-steps = 1\n{train}\n"
        );
        fs::write(&recipe, text).unwrap();
        let run = ["run", recipe.to_str().unwrap()];
        let planned = ok(&[&run[..], &["--check"]].concat());
        let said = ok(&run);
        let parts = planned.lines().find_map(|l| l.split_once(" MiB, by train: ")).unwrap().1;
        let told = said.lines().find_map(|l| l.split_once("memory in MiB: ")).unwrap().1;
        assert_eq!(Some(parts.trim()), told.split(", in all").next(), "{train}");
    }
}

/// The label of an evaluation in a matrix has the arm before the task; and only the examples of the method have parallel sentences: of the rows that
/// this world's second baseline makes, a run has 12 steps in an epoch.
#[test]
fn every_evaluation_of_a_matrix_is_expected_and_every_training_has_the_steps_of_its_own_rows() {
    let set = "set=[\"train.epochs=1\"]";
    let planned = ok(&["ablate", "recipes/ablations.toml", "--set", set, "--check"]);
    let lines: Vec<&str> = planned.lines().collect();
    let evals: Vec<&&str> = lines.iter().filter(|l| l.starts_with("eval")).collect();
    assert!(evals.len() > 30 && evals.iter().all(|l| l.contains("180 rows, ")), "{planned}");
    let at = lines.iter().position(|l| l.starts_with("assemble translate-then-sft")).unwrap();
    let (before, _) = lines[at + 2].split_once(" steps").unwrap();
    let words: Vec<&str> = before.split_whitespace().rev().take(3).collect();
    let [most, "to", least] = words[..] else { panic!("{before}") };
    assert!((least.parse::<u32>().unwrap()..=most.parse().unwrap()).contains(&12), "{before}");
}

/// A training that is refused leaves the shards of the finished one in its folder as they are.
#[test]
fn a_finished_training_keeps_its_shards_from_other_data() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    for (name, word) in [("a.jsonl", "red"), ("b.jsonl", "blue")] {
        let rows: String = (0..24)
            .map(|i| format!("{{\"instruction\": \"What is {i}?\", \"output\": \"House {i} is {word}.\"}}\n"))
            .collect();
        fs::write(dir.path().join(name), rows).unwrap();
    }
    let (a, b, out) = (at("a.jsonl"), at("b.jsonl"), at("out"));
    let train = |data: &str, more: &[&str]| -> Vec<String> {
        let args = [
            "train",
            "--model",
            "assets/quickstart/model",
            "--max-steps",
            "1",
            "--out",
            &out,
            "--data",
            data,
        ];
        args.iter().chain(more).map(|s| s.to_string()).collect()
    };
    let run = |args: Vec<String>| ok(&args.iter().map(String::as_str).collect::<Vec<_>>());
    run(train(&a, &[]));
    let shards = || fs::read(dir.path().join("out/pack/train.tokens")).unwrap();
    let first = shards();
    let refused = train(&b, &[]);
    fails(
        &refused.iter().map(String::as_str).collect::<Vec<_>>(),
        &["holds a finished train of other data", "--restart"],
    );
    assert_eq!(shards(), first);
    assert!(run(train(&a, &[])).contains("unchanged"));
    run(train(&b, &["--restart"]));
    assert_ne!(shards(), first);
}
