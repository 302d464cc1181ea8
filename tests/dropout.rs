//! Dropout of adapters' inputs: PEFT's losses and gradients under the same masks, and masks that nothing but (seed, step, linear, document, position, column) decides.
use sdrrl::{
    device::Device,
    models::{
        transformer::{
            ids::LinearId,
            lora::{Lora, LoraConfig},
            train_step::{PackedBatch, TrainStep, Trainable},
            weights::Transformer,
        },
        weights::safetensors::Checkpoint,
    },
    ops::dropout::{Mask, Part, dropout_forward, key},
    tensor::{DType, Tensor},
};

use crate::{
    common::{assert_close, with_threads},
    exports::{Work, done},
};

/// As in scripts/golden_dropout.py.
const RATE: f64 = 0.3;
const SEED: u64 = 0x1234_5678_9abc;
const STEP: u64 = 7;
const IDS: [u32; 3] = [70_000, 3, 5];

const MODELS: [&str; 2] = ["llama-tied", "llama-bias"];

struct Golden {
    model: Checkpoint,
    dropped: Checkpoint,
}

fn get(file: &Checkpoint, name: &str) -> Vec<f32> {
    let shape = file.shape(name).unwrap_or_else(|| panic!("no golden {name}")).to_vec();
    file.tensor(name, &shape, DType::F32).unwrap().to_f32_vec().unwrap()
}

impl Golden {
    fn open(name: &str) -> Golden {
        let open = |path: String| Checkpoint::open_file(path.as_ref()).unwrap();
        Golden {
            model: open(format!("tests/golden/models/{name}/golden.safetensors")),
            dropped: open(format!("tests/golden/dropout/{name}.safetensors")),
        }
    }

    /// (id, tokens, weights of predicting each) of the documents.
    fn documents(&self) -> Vec<(u32, Vec<u32>, Vec<f32>)> {
        let integers = |name: &str| self.model.integers(name).unwrap();
        let (tokens, ends, weights) =
            (integers("tokens"), integers("cu_seqlens"), get(&self.model, "weights"));
        let one = |(ends, id): (&[u32], u32)| {
            let (start, end) = (ends[0] as usize, ends[1] as usize);
            let mut own = vec![0.0; end - start];
            own[1..].copy_from_slice(&weights[start..end - 1]);
            (id, tokens[start..end].to_vec(), own)
        };
        ends.windows(2).zip(IDS).map(one).collect()
    }

    fn weight(&self) -> f32 {
        get(&self.model, "weights").iter().sum()
    }

    /// A step with the golden's adapters, which drops `rate`.
    fn step(&self, model: &Transformer, variant: &str, rate: f64) -> TrainStep {
        let config = LoraConfig {
            r: 4,
            alpha: 8.0,
            use_rslora: variant == "rslora",
            use_dora: variant == "dora",
            dropout: rate,
            ..LoraConfig::default()
        };
        let lora = Lora::init(&model.to_device(&Device::Cpu).unwrap(), config, 1).unwrap();
        let mut step = TrainStep::new(model, Trainable::Lora(lora), 24).unwrap();
        for mut p in step.params(model) {
            p.write(&get(&self.model, &format!("lora.{variant}.param.base_model.model.{}", p.name))).unwrap();
        }
        step.draw(SEED, STEP);
        step
    }
}

fn load(name: &str, device: &Device) -> Transformer {
    let path = std::path::Path::new("tests/golden/models").join(name);
    Transformer::load(&path, DType::F32).unwrap().to_device(device).unwrap()
}

fn packed(documents: &[(u32, Vec<u32>, Vec<f32>)]) -> PackedBatch {
    let mut batch = PackedBatch::default();
    documents.iter().for_each(|(id, tokens, weights)| batch.push_as(*id, tokens, weights));
    batch
}

fn gradients_equal_peft(device: &Device, tolerance: f64) {
    for name in MODELS {
        let golden = Golden::open(name);
        let batch = packed(&golden.documents());
        for variant in ["plain", "rslora", "dora"] {
            let mut model = load(name, device);
            let mut step = golden.step(&model, variant, RATE);
            let loss = step.forward_backward(&mut model, &batch, 1.0 / golden.weight()).unwrap();
            let what = format!("{name} {variant}");
            assert_close(
                &what,
                [loss.mean() as f32],
                &get(&golden.dropped, &format!("{variant}.loss")),
                1e-5,
            );
            for p in step.params(&model) {
                let want = get(&golden.dropped, &format!("{variant}.grad.base_model.model.{}", p.name));
                assert_close(&format!("{what} {}", p.name), p.grad().to_f32_vec().unwrap(), &want, tolerance);
            }
        }
    }
}

#[test]
fn gradients_equal_those_of_peft_under_the_same_masks() {
    gradients_equal_peft(&Device::Cpu, 2e-5);
}

#[test]
fn gradients_equal_those_of_peft_under_the_same_masks_on_the_emulated_gpu() {
    gradients_equal_peft(&crate::kernels::emulated(), 5e-5);
}

/// What is kept of rows (document, position) of ones.
fn mask(linear: u32, step: u64, rows: &[[u32; 2]], columns: usize) -> Vec<f32> {
    let ones = Tensor::from_f32("ones", &[rows.len(), columns], &vec![1.0; rows.len() * columns]).unwrap();
    let mut out = Tensor::zeros("out", DType::F32, &[rows.len(), columns]).unwrap();
    let rows = Tensor::from_u32("rows", &[rows.len(), 2], &rows.concat()).unwrap();
    let mask = Mask { rows: &rows, key: key(SEED, step, linear), rate: RATE };
    dropout_forward(&mut out, &ones, mask, Part::Kept).unwrap();
    out.to_f32_vec().unwrap()
}

#[test]
fn masks_are_those_that_numpy_draws_and_drop_the_share_that_was_asked_for() {
    let golden = Golden::open("llama-tied");
    let lengths = golden.documents().into_iter().map(|(id, tokens, _)| (id, tokens.len() as u32));
    let rows: Vec<[u32; 2]> = lengths.flat_map(|(id, n)| (0..n).map(move |at| [id, at])).collect();
    let kept = (1.0 / (1.0 - RATE)) as f32;
    for linear in [0, LinearId::ADAPTABLE.len() as u32 * 2 - 1] {
        let want = get(&golden.dropped, &format!("masks.{linear}"));
        let want: Vec<f32> = want.iter().map(|x| x * kept).collect();
        assert_eq!(mask(linear, STEP, &rows, 8), want);
        // Each is drawn by step and linear, too.
        assert_ne!(mask(linear, STEP + 1, &rows, 8), want);
        assert_ne!(mask(linear + 1, STEP, &rows, 8), want);
    }
    let many: Vec<[u32; 2]> = (0..64).map(|at| [1, at]).collect();
    let drawn = mask(0, 1, &many, 1023);
    let share = drawn.iter().filter(|&&x| x == 0.0).count() as f64 / drawn.len() as f64;
    assert!((share - RATE).abs() < 0.01, "{share} is dropped");
    let backwards: Vec<[u32; 2]> = many.iter().rev().copied().collect();
    let rows_of = |all: &[f32]| all.chunks(1023).map(<[f32]>::to_vec).collect::<Vec<_>>();
    let mut other = rows_of(&mask(0, 1, &backwards, 1023));
    other.reverse();
    assert_eq!(rows_of(&drawn), other, "a row's place in a batch decides nothing");
    assert_eq!(with_threads(1, || mask(0, 1, &many, 1023)), with_threads(3, || mask(0, 1, &many, 1023)));
}

#[test]
fn a_documents_loss_does_not_depend_on_its_batch_and_evaluation_drops_nothing() {
    let golden = Golden::open("llama-bias");
    let documents = golden.documents();
    for variant in ["plain", "dora"] {
        let mut model = load("llama-bias", &Device::Cpu);
        let mut step = golden.step(&model, variant, RATE);
        let mut loss = |documents: &[(u32, Vec<u32>, Vec<f32>)]| {
            step.forward_backward(&mut model, &packed(documents), 1.0).unwrap().weighted_nll
        };
        let together = loss(&documents);
        let apart: f64 = documents.iter().map(|d| loss(std::slice::from_ref(d))).sum();
        assert!((together - apart).abs() < 1e-9 * together, "{variant}: {together} {apart}");
        let other = loss(&documents.iter().cloned().map(|(id, t, w)| (id + 1, t, w)).collect::<Vec<_>>());
        assert!((together - other).abs() > 1e-4, "other documents draw other masks: {together} {other}");
        let evaluated = step.forward(&model, &packed(&documents)).unwrap();
        let mut whole = golden.step(&model, variant, 0.0);
        assert_eq!(evaluated, whole.forward(&model, &packed(&documents)).unwrap());
        assert_eq!(evaluated, whole.forward_backward(&mut model, &packed(&documents), 1.0).unwrap());
    }
}

#[test]
fn a_share_that_cannot_be_dropped_is_refused_by_name() {
    let model = load("llama-tied", &Device::Cpu);
    for rate in [1.0, -0.1, f64::NAN] {
        let lora = Lora::init(&model, LoraConfig { dropout: rate, ..Default::default() }, 1).unwrap();
        let said = TrainStep::new(&model, Trainable::Lora(lora), 8).err().unwrap().to_string();
        assert!(said.contains("lora_dropout"), "{said}");
    }
}

const MODEL: &str = "assets/quickstart/model";

/// `lora_dropout` of the adapter in a folder.
fn written(work: &Work, folder: &str) -> f64 {
    let text = std::fs::read_to_string(work.at(folder).join("adapter_config.json")).unwrap();
    serde_json::from_str::<serde_json::Value>(&text).unwrap()["lora_dropout"].as_f64().unwrap()
}

#[test]
fn dropout_is_written_into_the_adapter_and_counts_where_it_is_trained_on() {
    let work = Work::new(&[]);
    done(&work.train(MODEL, "a", &["--lora-dropout", "0.25", "--dora"], &[]));
    assert_eq!(written(&work, "a"), 0.25);
    let from = ["--adapter", &work.text("a")];
    let said = done(&work.train(MODEL, "b", &from, &[]));
    assert!(said.contains("lora_dropout 0.25 of"), "{said}");
    assert_eq!(written(&work, "b"), 0.25);
    for (more, named) in [
        (&[from[0], from[1], "--lora-dropout", "0.1"][..], "lora_dropout 0.25"),
        (&["--method", "full", "--lora-dropout", "0.1"], "lora-dropout"),
        (&["--lora-dropout", "1"], "lora-dropout"),
    ] {
        let out = work.train(MODEL, "c", more, &[]);
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(!out.status.success() && said.contains(named), "{more:?}: {said}");
    }
    // An adapter of another program that drops everything is named.
    let config = format!("{}/adapter_config.json", work.text("a"));
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("\"lora_dropout\": 0.25", "\"lora_dropout\": 1.0")).unwrap();
    let out = work.train(MODEL, "d", &from, &[]);
    let said = String::from_utf8_lossy(&out.stderr);
    let named = format!("lora_dropout of {} is 1", work.text("a"));
    assert!(!out.status.success() && said.contains(&named), "{said}");
}
