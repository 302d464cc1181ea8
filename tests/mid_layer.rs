//! Alignment in the middle of a model: against PyTorch (tests/golden/mid_layer.safetensors, scripts/golden_mid_layer.py), against its own loss, and in training.
use std::{cell::Cell, fs, path::Path};

use sdrrl::{
    data::{
        random::RowRandom,
        token_shard::{Document, TokenShard, write},
    },
    device::Device,
    infer::hidden::{Pooling, sentence_vectors},
    metrics::alignment::Alignment,
    models::{
        transformer::{
            lora::{Lora, LoraConfig},
            train_step::{PackedBatch, TrainStep, Trainable},
            weights::Transformer,
        },
        weights::safetensors::Checkpoint,
    },
    tensor::DType,
    train::{
        middle_layer::{Contrast, MiddleLayer},
        schedule::{Schedule, ScheduleKind},
        trainer::{Checks, TrainEvent, TrainerSettings, train},
    },
};
use serde_json::Value;

use crate::common::{assert_close, relative_error, with_threads};

/// The cases of the golden file: model, DoRA.
const CASES: [(&str, &str, bool); 4] = [
    ("middle", "llama-tied", false),
    ("top", "llama-tied", false),
    ("dora", "llama-tied", true),
    ("biases", "qwen2", false),
];

struct Golden(Checkpoint);

impl Golden {
    fn open() -> Golden {
        Golden(Checkpoint::open_file(Path::new("tests/golden/mid_layer.safetensors")).unwrap())
    }
    fn get(&self, name: &str) -> Vec<f32> {
        let shape = self.0.shape(name).unwrap_or_else(|| panic!("no golden {name}")).to_vec();
        self.0.tensor(name, &shape, DType::F32).unwrap().to_f32_vec().unwrap()
    }
    /// The sentences, then their translations.
    fn documents(&self) -> Vec<Vec<u32>> {
        let of = |name: &str| {
            let integers = |part: &str| self.0.integers(&format!("{name}.{part}")).unwrap();
            let tokens = integers("tokens");
            let ends = integers("cu_seqlens");
            let texts = ends.windows(2).map(|d| tokens[d[0] as usize..d[1] as usize].to_vec());
            texts.collect::<Vec<Vec<u32>>>()
        };
        [of("source"), of("target")].concat()
    }
}

/// The documents in order, in batches of up to `most` tokens.
fn batches(documents: &[Vec<u32>], most: usize) -> Vec<PackedBatch> {
    let mut all = vec![PackedBatch::default()];
    for (i, tokens) in documents.iter().enumerate() {
        if all.last().unwrap().tokens.len() + tokens.len() > most {
            all.push(PackedBatch::default());
        }
        all.last_mut().unwrap().push_as(i as u32, tokens, &vec![0.0; tokens.len()]);
    }
    all
}

fn load(name: &str, dtype: DType) -> Transformer {
    Transformer::load(&Path::new("tests/golden/models").join(name), dtype).unwrap()
}

fn step(model: &Transformer, config: LoraConfig) -> TrainStep {
    let lora = Lora::init(&model.to_device(&Device::Cpu).unwrap(), config, 1).unwrap();
    TrainStep::new(model, Trainable::Lora(lora), 64).unwrap()
}

fn lora(dora: bool) -> LoraConfig {
    LoraConfig { r: 2, alpha: 4.0, use_dora: dora, ..LoraConfig::default() }
}

fn disturb(step: &TrainStep, model: &Transformer) {
    for mut p in step.params(model) {
        let mut random = RowRandom::new(3, "disturb", &p.name);
        let old = p.value().to_f32_vec().unwrap();
        p.write(&old.iter().map(|x| x + 0.2 * (random.uniform() as f32 - 0.5)).collect::<Vec<_>>()).unwrap();
    }
}

type Named = Vec<(String, Vec<f32>)>;

/// The loss of the documents, what stands in the middle, and the gradients.
fn aligned(
    model: &Transformer,
    step: &mut TrainStep,
    batches: &[PackedBatch],
    (layer, temperature): (usize, f64),
) -> (Contrast, Vec<f32>, Named) {
    step.zero_grads().unwrap();
    let (mut found, mut seen) = (Contrast::default(), vec![]);
    step.forward_backward_pooled(model, batches, layer, &mut |means| {
        found = Contrast::of(means, model.spec.hidden_size, temperature);
        seen = means.to_vec();
        Ok(found.gradient.clone())
    })
    .unwrap();
    let params = step.params(model);
    let gradients = params.iter().map(|p| (p.name.clone(), p.grad().to_f32_vec().unwrap())).collect();
    (found, seen, gradients)
}

fn equals_pytorch(device: &Device, (case, name, dora): (&str, &str, bool), most: usize) {
    let golden = Golden::open();
    let own = load(name, DType::F32);
    let model = if *device == Device::Cpu { own } else { own.to_device(device).unwrap() };
    let mut step = step(&model, lora(dora));
    for mut p in step.params(&model) {
        p.write(&golden.get(&format!("{case}.param.base_model.model.{}", p.name))).unwrap();
    }
    let how = golden.get(&format!("{case}.how"));
    let (layer, temperature) = (how[0] as usize, f64::from(how[1]));
    let batches = batches(&golden.documents(), most);
    let (found, means, gradients) = aligned(&model, &mut step, &batches, (layer, temperature));
    let loss = golden.get(&format!("{case}.loss"));
    assert_close(&format!("{case} loss"), [found.loss as f32], &loss, 1e-5);
    assert_close(&format!("{case} means"), means, &golden.get(&format!("{case}.means")), 1e-5);
    assert!((found.retrieved as f32 - golden.get(&format!("{case}.retrieval"))[0]).abs() < 1e-6, "{case}");
    let mut above = 0;
    for (name, got) in gradients {
        let want = golden.get(&format!("{case}.grad.base_model.model.{name}"));
        if want.iter().all(|x| *x == 0.0) {
            assert!(got.iter().all(|x| *x == 0.0), "{case} {name}: nothing above the layer learns");
            above += 1;
        } else {
            assert_close(&format!("{case} {name}"), got, &want, 1e-3);
        }
    }
    assert_eq!(above > 0, case != "top");
}

#[test]
fn the_loss_and_the_gradients_of_adapters_equal_pytorchs() {
    for case in CASES {
        // All sentences at once, and some at a time.
        for most in [64, 17] {
            equals_pytorch(&Device::Cpu, case, most);
        }
    }
}

#[test]
fn the_loss_and_the_gradients_of_adapters_equal_pytorchs_on_the_emulated_gpu() {
    for (case, most) in [(CASES[0], 17), (CASES[1], 64), (CASES[2], 64), (CASES[3], 64)] {
        equals_pytorch(&crate::kernels::emulated(), case, most);
    }
}

/// In bf16 the gradients are within its rounding of those that the CPU has of the same weights; of all weights in f32 they are the CPU's.
#[test]
fn the_emulated_gpu_aligns_in_bf16_and_all_weights_in_f32() {
    let batches = batches(&Golden::open().documents(), 64);
    for (dtype, full, allowed) in [(DType::Bf16, false, 8e-2), (DType::F32, true, 1e-3)] {
        let gradients = |device: &Device| {
            let mut model = load("llama-tied", dtype);
            if full {
                model.make_trainable().unwrap();
            }
            if *device != Device::Cpu {
                model = model.to_device(device).unwrap();
            }
            let mut step = match full {
                true => TrainStep::new(&model, Trainable::Full, 64).unwrap(),
                false => step(&model, lora(false)),
            };
            if !full {
                disturb(&step, &model);
            }
            aligned(&model, &mut step, &batches, (1, 0.5)).2
        };
        let (want, got) = (gradients(&Device::Cpu), gradients(&crate::kernels::emulated()));
        let flat = |all: &Named| all.iter().flat_map(|(_, g)| g.clone()).collect::<Vec<f32>>();
        let error = relative_error(&flat(&got), &flat(&want));
        assert!(error < allowed, "{dtype:?}: {error:e}");
        assert!(flat(&want).iter().any(|g| g.abs() > 1e-3));
    }
}

/// Along the gradient of all weights, and of adapters that drop inputs, the loss rises as the gradient's length says.
#[test]
fn the_gradient_is_that_of_the_loss_with_dropout_and_of_all_weights() {
    let documents = Golden::open().documents();
    for full in [false, true] {
        let mut model = load("llama-tied", DType::F32);
        let mut step = if full {
            model.make_trainable().unwrap();
            TrainStep::new(&model, Trainable::Full, 64).unwrap()
        } else {
            step(&model, LoraConfig { dropout: 0.3, ..lora(false) })
        };
        if !full {
            disturb(&step, &model);
        }
        step.draw(5, 3);
        let (how, batches) = ((1, 0.5), batches(&documents, 64));
        let (first, _, gradients) = aligned(&model, &mut step, &batches, how);
        // The same masks, however the sentences are packed.
        let (again, _, apart) = aligned(&model, &mut step, &self::batches(&documents, 20), how);
        assert!((again.loss / first.loss - 1.0).abs() < 1e-5, "{first:?} {again:?}");
        let flat = |all: &Named| all.iter().flat_map(|(_, g)| g.clone()).collect::<Vec<f32>>();
        assert_close("in parts", flat(&apart), &flat(&gradients), 1e-4);
        step.draw(5, 4);
        let other = aligned(&model, &mut step, &batches, how).0.loss;
        assert_eq!(other == first.loss, full, "dropout draws anew for each step");
        step.draw(5, 3);
        let length = flat(&gradients).iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
        let before: Vec<Vec<f32>> =
            step.params(&model).iter().map(|p| p.value().to_f32_vec().unwrap()).collect();
        let mut at = |distance: f64| {
            for (p, (values, (_, own))) in step.params(&model).iter_mut().zip(before.iter().zip(&gradients)) {
                let moved =
                    values.iter().zip(own).map(|(x, g)| x + (distance * f64::from(*g) / length) as f32);
                p.write(&moved.collect::<Vec<_>>()).unwrap();
            }
            aligned(&model, &mut step, &batches, how).0.loss
        };
        let slope = (at(0.003) - at(-0.003)) / 0.006;
        assert!((slope / length - 1.0).abs() < 0.01, "{full}: {slope} {length}");
    }
}

/// The means are the vectors that evaluations look at, layer by layer.
#[test]
fn what_is_aligned_is_what_evaluations_measure() {
    let mut documents = Golden::open().documents();
    // Some of the models have no more words.
    documents.iter_mut().flatten().for_each(|t| *t %= 64);
    for name in ["llama-tied", "gemma3", "olmo2"] {
        let model = load(name, DType::F32);
        let mut step = step(&model, lora(false));
        let layers = sentence_vectors(&model, &documents, Pooling::Mean, 64, &mut |_| {}).unwrap();
        for (layer, want) in layers.iter().enumerate().skip(1) {
            let got = step.pooled(&model, &batches(&documents, 64)[0], layer).unwrap();
            assert_close(&format!("{name} {layer}"), got, &want.concat(), 1e-6);
        }
        for layer in [0, layers.len()] {
            assert!(step.pooled(&model, &batches(&documents, 64)[0], layer).is_err());
        }
    }
}

const VOCAB: usize = 48;

/// Sentences and their translations, of other words in another order.
fn pairs() -> Vec<[Vec<u32>; 2]> {
    let mut random = RowRandom::new(6, "pairs", "");
    (0..24)
        .map(|_| {
            let words: Vec<u32> = (0..3 + random.below(5)).map(|_| random.below(VOCAB / 2) as u32).collect();
            let translated = words.iter().rev().map(|w| w + VOCAB as u32 / 2).collect();
            [words, translated]
        })
        .collect()
}

/// Documents of a task that has nothing to do with them.
fn task(dir: &Path) -> TokenShard {
    let documents: Vec<Document> = (0..12u32)
        .map(|i| Document {
            tokens: (0..6).map(|k| (i + k) % VOCAB as u32).collect(),
            weights: vec![1.0; 6],
            note: format!("{i} T>T"),
        })
        .collect();
    write(&dir.join("task.tokens"), &documents).unwrap();
    TokenShard::open(&dir.join("task.tokens")).unwrap()
}

fn settings() -> TrainerSettings {
    let usual = crate::training::settings();
    TrainerSettings {
        epochs: 40.0,
        batch_documents: 12,
        batch_tokens: 64,
        lr: 0.01,
        schedule: Schedule { kind: ScheduleKind::Constant, ..usual.schedule },
        ..usual
    }
}

/// How a training ended: whether it did, its parameters, metrics, and the share of all pairs that are found in the middle.
struct Trained {
    finished: bool,
    values: Vec<f32>,
    metrics: String,
    found: f64,
}

fn run(dir: &Path, out: &str, weight: Option<f64>, config: LoraConfig, stop_after: usize) -> Trained {
    let shard = task(dir);
    let mut model = Transformer::random(crate::training::config(), 1).unwrap();
    let mut step =
        TrainStep::new(&model, Trainable::Lora(Lora::init(&model, config, 2).unwrap()), 64).unwrap();
    let sentences = weight.map(|weight| MiddleLayer::new(pairs(), 1, 8, [0.1, weight]).unwrap());
    let (done, out) = (Cell::new(0), dir.join(out));
    let mut count = |e| done.set(done.get() + usize::from(matches!(e, TrainEvent::Step { .. })));
    let checks = Checks { alignment: sentences.as_ref(), ..Checks::default() };
    let stop = || done.get() >= stop_after;
    let outcome = train(&mut model, &mut step, &shard, checks, &settings(), &out, &stop, &mut count).unwrap();
    let mut side = |side: usize| -> Vec<Vec<f32>> {
        let mut batch = PackedBatch::default();
        let texts = pairs();
        let each = texts.iter().map(|pair| {
            batch = PackedBatch::default();
            batch.push(&pair[side], &vec![0.0; pair[side].len()]);
            step.pooled(&model, &batch, 1).unwrap()
        });
        each.collect()
    };
    Trained {
        finished: outcome.finished,
        found: Alignment::of(&side(0), &side(1)).unwrap().retrieved().0,
        values: step.params(&model).iter().flat_map(|p| p.value().to_f32_vec().unwrap()).collect(),
        metrics: fs::read_to_string(out.join("metrics.jsonl")).unwrap(),
    }
}

fn values(metrics: &str, tag: &str) -> Vec<f64> {
    metrics.lines().filter_map(|l| serde_json::from_str::<Value>(l).unwrap()[tag].as_f64()).collect()
}

fn mean(x: &[f64]) -> f64 {
    x.iter().sum::<f64>() / x.len() as f64
}

/// Translations are found in the middle after training with the loss, and not without it; the task is learnt beside it.
#[test]
fn translations_are_found_after_training_with_alignment_and_not_without() {
    let dir = tempfile::tempdir().unwrap();
    let config = LoraConfig { r: 8, ..Default::default() };
    let with = run(dir.path(), "with", Some(1.0), config.clone(), usize::MAX);
    let without = run(dir.path(), "without", None, config, usize::MAX);
    let (loss, retrieval) =
        (values(&with.metrics, "train/alignment_loss"), values(&with.metrics, "train/alignment_retrieval"));
    assert_eq!((loss.len(), retrieval.len()), (40, 40));
    assert!(mean(&retrieval[37..]) > mean(&retrieval[..3]) + 0.4, "{retrieval:?}");
    assert!(mean(&loss[37..]) < 0.5 * mean(&loss[..3]), "{loss:?}");
    assert!(values(&without.metrics, "train/alignment_loss").is_empty());
    assert!(with.found > 0.6 && without.found < 0.25, "{} {}", with.found, without.found);
    for run in [&with, &without] {
        let task = values(&run.metrics, "train/loss");
        assert!(task[39] < task[0] - 0.5, "{task:?}");
    }
}

/// Bits depend neither on threads nor on interruptions.
#[test]
fn a_resumed_alignment_equals_an_uninterrupted_one_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let config = LoraConfig { r: 4, dropout: 0.2, use_dora: true, ..Default::default() };
    let run = |out: &str, threads: usize, stop_after: usize| {
        with_threads(threads, || run(dir.path(), out, Some(0.5), config.clone(), stop_after))
    };
    let whole = run("whole", 2, usize::MAX);
    assert!(!run("parts", 1, 4).finished && !run("parts", 3, 9).finished);
    let parts = run("parts", 2, usize::MAX);
    assert_eq!(parts.metrics, whole.metrics);
    assert!(parts.values == whole.values && whole.finished, "parameters differ");
}

#[test]
fn a_layer_below_which_nothing_learns_is_refused() {
    let model = load("llama-tied", DType::F32);
    let some = LoraConfig {
        rank_pattern: vec![],
        target_modules: vec!["layers.1.self_attn.q_proj".into()].into(),
        ..lora(false)
    };
    let mut step = step(&model, some);
    let documents = batches(&Golden::open().documents(), 64);
    let mut derive = |means: &[f32]| Ok(vec![0.0; means.len()]);
    let error = step.forward_backward_pooled(&model, &documents, 1, &mut derive).unwrap_err();
    assert!(format!("{error:#}").contains("nothing is trained below layer 1"), "{error:#}");
    step.forward_backward_pooled(&model, &documents, 2, &mut derive).unwrap();
}
