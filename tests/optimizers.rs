//! Optimizers other than AdamW against the programs that brought them, and in training.
use std::{cell::Cell, path::Path};

use clap::ValueEnum;
use sdrrl::{
    data::token_shard::{Document, TokenShard, write},
    device::Device,
    models::{
        transformer::{
            config::Config,
            lora::{Lora, LoraConfig},
            train_step::{TrainStep, Trainable},
            weights::Transformer,
        },
        weights::safetensors::Checkpoint,
    },
    ops::{
        adafactor::{Adafactor, AdafactorTable, Member, Squares},
        adamw::AdamW,
        adamw8::{self, AdamW8Table, Codes, Group8, dynamic_map},
        muon::{Matrix, Muon, MuonTable, Scratch},
    },
    tensor::{Arena, DType, Tensor},
    train::{
        optimizer::{OptimizerKind, OptimizerSettings},
        trainer::{Checks, TrainEvent, TrainerSettings, train},
    },
};

use crate::common::{assert_close, uniform, with_threads};

/// What scripts/golden_optimizers.py wrote.
struct Golden(Checkpoint);

impl Golden {
    fn open() -> Golden {
        Golden(Checkpoint::open_file("tests/golden/optimizers.safetensors".as_ref()).unwrap())
    }
    fn shape(&self, name: &str) -> Vec<usize> {
        self.0.shape(name).unwrap_or_else(|| panic!("no golden {name}")).to_vec()
    }
    fn get(&self, name: &str) -> Vec<f32> {
        self.0.tensor(name, &self.shape(name), DType::F32).unwrap().to_f32_vec().unwrap()
    }
    /// One after another: gradients or parameters of each step.
    fn steps(&self, name: &str) -> Vec<Vec<f32>> {
        let steps = self.shape(name)[0];
        let all = self.get(name);
        all.chunks(all.len() / steps).map(<[f32]>::to_vec).collect()
    }
}

fn put(device: &Device, values: &[f32]) -> Tensor {
    Tensor::from_f32("values", &[values.len()], values).unwrap().to_device(device).unwrap()
}

/// A parameter with its moments of 8 bits: words of codes, and largest magnitudes.
#[derive(Clone, Debug, PartialEq)]
struct Eight {
    param: Vec<f32>,
    moments: [(Vec<u32>, Vec<f32>); 2],
}

impl Eight {
    fn new(param: Vec<f32>) -> Eight {
        let (words, tops) = Codes::sizes(param.len());
        let zero = || (vec![0; words], vec![0.0; tops]);
        Eight { param, moments: [zero(), zero()] }
    }

    fn step(&mut self, device: &Device, grad: &[f32], lr_factor: f32, h: &AdamW) {
        let [m, v] = self.moments.each_ref().map(|(words, tops)| {
            let codes = Tensor::from_u32("codes", &[words.len()], words).unwrap().to_device(device).unwrap();
            Codes { codes, tops: put(device, tops) }
        });
        let read = [&m, &v].map(|m| (m.codes.reader(), m.tops.reader()));
        let (param, grad) = (put(device, &self.param), put(device, grad));
        let after = param.reader();
        let group = Group8 { param, m, v, grad, lr_factor, weight_decay: h.weight_decay };
        AdamW8Table::new(vec![group]).unwrap().update(h).unwrap();
        self.param = after.to_f32_vec().unwrap();
        self.moments = read.map(|(codes, tops)| (codes.to_u32_vec().unwrap(), tops.to_f32_vec().unwrap()));
    }

    /// The codes of a moment.
    fn bytes(&self, moment: usize) -> Vec<u8> {
        let words = self.moments[moment].0.iter();
        words.flat_map(|w| w.to_le_bytes()).take(self.param.len()).collect()
    }
}

/// As scripts/golden_optimizers.py calls bitsandbytes.
fn adamw(step: u64) -> AdamW {
    AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.98, eps: 1e-8, weight_decay: 0.1, step, grad_scale: 1.0 }
}

fn adamw8_equals_bitsandbytes(device: &Device) {
    let golden = Golden::open();
    let mut own = Eight::new(golden.get("adamw8.big.param"));
    let (grads, wants) = (golden.steps("adamw8.big.grads"), golden.steps("adamw8.big.after"));
    for (step, (grad, want)) in (1..).zip(grads.iter().zip(&wants)) {
        own.step(device, grad, 1.0, &adamw(step));
        assert_close(&format!("step {step}"), &own.param, want, 1e-6);
    }
    for (i, name) in ["m", "v"].into_iter().enumerate() {
        let want = golden.0.integers(&format!("adamw8.big.{name}_codes")).unwrap();
        let got: Vec<u32> = own.bytes(i).into_iter().map(u32::from).collect();
        assert!(got == want, "codes of {name}");
        let tops = golden.get(&format!("adamw8.big.{name}_tops"));
        assert_close(name, &own.moments[i].1, &tops, 1e-6);
    }
}

#[test]
fn adamw_of_8_bits_takes_the_steps_of_bitsandbytes() {
    adamw8_equals_bitsandbytes(&Device::Cpu);
    let golden = Golden::open();
    assert_eq!(dynamic_map(true).to_vec(), golden.get("adamw8.signed_map"));
    assert_eq!(dynamic_map(false).to_vec(), golden.get("adamw8.unsigned_map"));
}

#[test]
fn adamw_of_8_bits_takes_the_steps_of_bitsandbytes_on_the_emulated_gpu() {
    adamw8_equals_bitsandbytes(&crate::kernels::emulated());
}

#[test]
fn adamw_of_8_bits_agrees_with_its_f64_reference_and_does_not_depend_on_threads() {
    // Several tasks, and a last block of 17 elements.
    let n = 70 * adamw8::BLOCK + 17;
    let run = || {
        let mut own = Eight::new(uniform("p", n));
        for step in 1..3 {
            own.step(&Device::Cpu, &uniform("g", n), 2.0, &AdamW { grad_scale: 0.5, ..adamw(step) });
        }
        own
    };
    let own = with_threads(1, run);
    assert_eq!(with_threads(3, run), own);
    let (param, m, v) = (&own.param, own.bytes(0), own.bytes(1));
    let wide = |x: Vec<f32>| x.into_iter().map(f64::from).collect::<Vec<f64>>();
    let (p, g) = (wide(uniform("p", n)), wide(uniform("g", n)));
    for (block, at) in (0..n).step_by(adamw8::BLOCK).enumerate() {
        let range = at..n.min(at + adamw8::BLOCK);
        let zero = || (vec![0u8; range.len()], 0.0);
        let (mut want, mut wm, mut wv) = (p[range.clone()].to_vec(), zero(), zero());
        for step in 1..3 {
            let h = AdamW { lr: 2e-2, grad_scale: 0.5, ..adamw(step) };
            (want, wm, wv) = adamw8::reference::block(&want, &wm, &wv, &g[range.clone()], &h);
        }
        let want: Vec<f32> = want.into_iter().map(|x| x as f32).collect();
        assert_close(&format!("block {block}"), &param[range.clone()], &want, 1e-5);
        for (name, got, want) in [("m", &m, &wm.0), ("v", &v, &wv.0)] {
            // A value in the middle between two codes may be rounded to either.
            let off = got[range.clone()].iter().zip(want).filter(|(a, b)| a != b);
            let far = off.clone().filter(|(a, b)| a.abs_diff(**b) > 1).count();
            assert!(off.count() <= 1 && far == 0, "codes of {name} in block {block}");
        }
    }
}

fn adafactor_equals_transformers(device: &Device) {
    let golden = Golden::open();
    for name in ["big", "tall", "vector"] {
        let get = |part: &str| format!("adafactor.{name}.{part}");
        let shape = golden.shape(&get("param"));
        let on = |shape: &[usize], values: &[f32]| {
            Tensor::from_f32("values", shape, values).unwrap().to_device(device).unwrap()
        };
        let mut values = golden.get(&get("param"));
        let mut moments: Vec<Vec<f32>> = match shape[..] {
            [rows, cols] => vec![vec![0.0; rows], vec![0.0; cols]],
            _ => vec![vec![0.0; values.len()]],
        };
        let (grads, wants) = (golden.steps(&get("grads")), golden.steps(&get("after")));
        for (step, (grad, want)) in (1..).zip(grads.iter().zip(&wants)) {
            let squares = match &moments[..] {
                [row, col] => Squares::Factored { row: on(&[row.len()], row), col: on(&[col.len()], col) },
                all => Squares::Whole(on(&shape, &all[0])),
            };
            let (param, grad) = (on(&shape, &values), on(&shape, grad));
            let (after, read) = (param.reader(), squares.tensors().map(Tensor::reader).collect::<Vec<_>>());
            let member = Member { param, grad, squares, lr_factor: 1.0, weight_decay: 0.1 };
            let h = Adafactor { lr: 1e-2, step, grad_scale: 1.0 };
            AdafactorTable::new(vec![member]).unwrap().update(&h).unwrap();
            values = after.to_f32_vec().unwrap();
            moments = read.iter().map(|r| r.to_f32_vec().unwrap()).collect();
            assert_close(&format!("{name}, step {step}"), &values, want, 1e-6);
        }
        if let [row, col] = &moments[..] {
            assert_close(name, row, &golden.get(&get("row")), 1e-6);
            assert_close(name, col, &golden.get(&get("col")), 1e-6);
        }
    }
}

#[test]
fn adafactor_takes_the_steps_of_transformers() {
    adafactor_equals_transformers(&Device::Cpu);
}

#[test]
fn adafactor_takes_the_steps_of_transformers_on_the_emulated_gpu() {
    adafactor_equals_transformers(&crate::kernels::emulated());
}

fn muon_equals_pytorch(device: &Device) {
    let golden = Golden::open();
    for name in ["wide", "tall", "low"] {
        let get = |part: &str| format!("muon.{name}.{part}");
        let shape = golden.shape(&get("param"));
        let on =
            |values: &[f32]| Tensor::from_f32("values", &shape, values).unwrap().to_device(device).unwrap();
        let start = golden.get(&get("param"));
        let (mut values, mut momentum) = (start.clone(), vec![0.0; start.len()]);
        let (grads, wants) = (golden.steps(&get("grads")), golden.steps(&get("after")));
        for (step, (grad, want)) in (1..).zip(grads.iter().zip(&wants)) {
            let (param, grad, moment) = (on(&values), on(grad), on(&momentum));
            let read = [param.reader(), moment.reader()];
            let scratch = |a: &mut Arena| Scratch::lay_out(&[[shape[0], shape[1]]], a);
            let (scratch, _) = Arena::build("scratch", device, scratch).unwrap();
            let matrix = Matrix { param, grad, moment, lr_factor: 1.0, weight_decay: 0.1 };
            let h = Muon { lr: 1e-2, grad_scale: 1.0 };
            MuonTable::new(vec![matrix], scratch).unwrap().update(&h).unwrap();
            [values, momentum] = read.map(|r| r.to_f32_vec().unwrap());
            assert_close(&format!("{name}, step {step}"), &values, want, 1e-5);
        }
        // As PyTorch has it, in bf16: what the parameter moved by is as near as that type allows.
        let moved = |to: &[f32]| to.iter().zip(&start).map(|(a, b)| a - b).collect::<Vec<f32>>();
        let (got, want) = (moved(&values), moved(&golden.get(&get("bf16"))));
        assert_close(&format!("{name} in bf16"), got, &want, 2e-2);
    }
}

#[test]
fn muon_takes_the_steps_of_pytorch() {
    muon_equals_pytorch(&Device::Cpu);
}

#[test]
fn muon_takes_the_steps_of_pytorch_on_the_emulated_gpu() {
    muon_equals_pytorch(&crate::kernels::emulated());
}

/// Matrices large enough for moments of 8 bits.
fn model() -> Transformer {
    let config: Config = serde_json::from_value(serde_json::json!({
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 80, "max_position_embeddings": 32, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": true, "initializer_range": 0.1
    }))
    .unwrap();
    Transformer::random(config, 1).unwrap()
}

fn settings(kind: OptimizerKind) -> TrainerSettings {
    let usual = crate::training::settings();
    let optimizer = OptimizerSettings { kind, lora_plus_ratio: 2.0, ..usual.optimizer };
    TrainerSettings { optimizer, batch_documents: 4, epochs: 4.0, checkpoint_every: 2, ..usual }
}

/// The losses of the steps that were run, and the parameters' bits.
type Ran = (Vec<f64>, Vec<u32>);

/// Trains into `out`, all weights or adapters, stopping after `steps` further steps.
fn run(out: &Path, kind: OptimizerKind, full: bool, steps: usize) -> anyhow::Result<Ran> {
    let file = out.with_extension("tokens");
    let document = |i: u32| Document {
        tokens: (0..12).map(|k| (7 * i + (1 + i % 3) * k) % 80).collect(),
        weights: vec![1.0; 12],
        note: String::new(),
    };
    write(&file, &(0..16).map(document).collect::<Vec<_>>())?;
    let shard = TokenShard::open(&file)?;
    let mut model = model();
    let trainable = if full {
        model.make_trainable()?;
        Trainable::Full
    } else {
        Trainable::Lora(Lora::init(&model, LoraConfig { r: 64, alpha: 64.0, ..Default::default() }, 2)?)
    };
    let mut step = TrainStep::new(&model, trainable, 64)?;
    let (done, mut losses) = (Cell::new(0), vec![]);
    let mut seen = |event: TrainEvent| {
        if let TrainEvent::Step { loss, .. } = event {
            losses.push(loss);
            done.set(done.get() + 1);
        }
    };
    let s = settings(kind);
    train(&mut model, &mut step, &shard, Checks::default(), &s, out, &|| done.get() >= steps, &mut seen)?;
    let bits = |p: &sdrrl::models::transformer::train_step::Param| {
        p.value().to_f32_vec().unwrap().into_iter().map(f32::to_bits).collect::<Vec<_>>()
    };
    Ok((losses, step.params(&model).iter().flat_map(bits).collect()))
}

#[test]
fn every_optimizer_learns_and_resumes_bit_for_bit_on_any_number_of_threads() {
    for kind in OptimizerKind::value_variants() {
        for full in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let [whole, parts] = ["whole", "parts"].map(|name| dir.path().join(name));
            let (losses, bits) = with_threads(2, || run(&whole, *kind, full, usize::MAX)).unwrap();
            assert!(losses[losses.len() - 1] < losses[0] - 0.1, "{kind:?}: {losses:?}");
            for (threads, steps) in [(1, 3), (3, 6), (2, usize::MAX)] {
                let part = with_threads(threads, || run(&parts, *kind, full, steps)).unwrap();
                assert!(part.1 != bits || steps == usize::MAX, "{kind:?} was not interrupted");
                assert!(part.1 == bits || steps != usize::MAX, "{kind:?}, all weights {full}: other bits");
            }
        }
    }
}

#[test]
fn a_checkpoint_of_another_optimizer_is_refused_by_name() {
    for before in OptimizerKind::value_variants() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        run(&out, *before, false, 2).unwrap();
        for now in OptimizerKind::value_variants().iter().filter(|now| *now != before) {
            let said = run(&out, *now, false, 2).unwrap_err().to_string();
            assert!([before, now].iter().all(|kind| said.contains(kind.name())), "{said}");
        }
        run(&out, *before, false, 2).unwrap();
    }
}
