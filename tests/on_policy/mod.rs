//! On-policy self-distillation against PyTorch (tests/golden/on_policy.safetensors, scripts/golden_on_policy.py), interrupted, and by commands.
mod commands;
mod stored;
mod stored_commands;

use std::{cell::Cell, fs, path::Path};

use anyhow::Result;
use sdrrl::{
    data::{
        questions::preferences::Rows,
        token_shard::{Document, TokenShard, write},
    },
    device::Device,
    infer::{
        engine::{Engine, EngineOptions, Finish, Request},
        sampler::SamplingParams,
    },
    models::{
        transformer::{
            decode::{Adapted, Decoder},
            lora::{Lora, LoraConfig},
            train_step::{Distilled, DistilledSum, TrainStep, Trainable},
            weights::Transformer,
        },
        weights::safetensors::Checkpoint,
    },
    tensor::DType,
    train::{
        distillation::Distillation,
        on_policy::{Answer, Answers, OnPolicy, Question},
        optimizer::OptimizerSettings,
        schedule::{Schedule, ScheduleKind},
        trainer::{Checks, TrainEvent, TrainerSettings, train},
    },
};
use serde_json::Value;

use crate::common::{assert_close, with_threads};

/// As f32 PyTorch agrees with us.
const PARITY: f64 = 1e-5;
const STEPS: u64 = 5;

struct Golden(Checkpoint);

impl Golden {
    fn open() -> Golden {
        Golden(Checkpoint::open_file(Path::new("tests/golden/on_policy.safetensors")).unwrap())
    }
    fn get(&self, name: &str) -> Vec<f32> {
        let shape = self.0.shape(name).unwrap_or_else(|| panic!("no golden {name}")).to_vec();
        self.0.tensor(name, &shape, DType::F32).unwrap().to_f32_vec().unwrap()
    }
    /// The student's prompts, the teacher's, or the answers.
    fn texts(&self, name: &str) -> Vec<Vec<u32>> {
        let integers = |part: &str| self.0.integers(&format!("{name}.{part}")).unwrap();
        let tokens = integers("tokens");
        integers("cu_seqlens").windows(2).map(|d| tokens[d[0] as usize..d[1] as usize].to_vec()).collect()
    }
    fn answers(&self) -> Vec<Answer> {
        let ended = self.0.integers("answer.ended").unwrap();
        let answer = |(tokens, ended)| Answer { tokens, ended: ended == 1, alarm: false };
        self.texts("answer").into_iter().zip(ended).map(answer).collect()
    }
}

fn questions(dir: &Path, prompts: [Vec<Vec<u32>>; 2]) -> TokenShard {
    let [student, teacher] = prompts;
    let document =
        |tokens: Vec<u32>, note: String| Document { weights: vec![0.0; tokens.len()], tokens, note };
    let unit = |(i, (s, t))| [document(s, format!("q{i} student")), document(t, format!("q{i} teacher"))];
    let documents: Vec<Document> = student.into_iter().zip(teacher).enumerate().flat_map(unit).collect();
    write(&dir.join("questions.tokens"), &documents).unwrap();
    TokenShard::open(&dir.join("questions.tokens")).unwrap().holding(Rows::Questions).unwrap()
}

fn model(device: &Device) -> Transformer {
    let model = Transformer::load(Path::new("tests/golden/models/llama-tied"), DType::F32).unwrap();
    if *device == Device::Cpu { model } else { model.to_device(device).unwrap() }
}

fn step(model: &Transformer, config: LoraConfig, max_tokens: usize, clip: Option<f32>) -> TrainStep {
    let lora = Lora::init(&self::model(&Device::Cpu), config, 1).unwrap();
    let step = TrainStep::new(model, Trainable::Lora(lora), max_tokens).unwrap();
    step.distilling(model, clip).unwrap()
}

fn lora() -> LoraConfig {
    LoraConfig { r: 2, alpha: 4.0, ..LoraConfig::default() }
}

fn settings(batch_tokens: usize) -> TrainerSettings {
    let usual = crate::training::settings();
    TrainerSettings {
        epochs: STEPS as f64,
        batch_documents: 6,
        batch_tokens,
        lr: 0.01,
        schedule: Schedule { kind: ScheduleKind::Constant, ..usual.schedule },
        warmup_ratio: 0.0,
        optimizer: OptimizerSettings { weight_decay: 0.0, ..usual.optimizer },
        checkpoint_every: 0,
        ..usual
    }
}

/// Says the same whatever is asked, by the question's number.
struct Fixed(Vec<Answer>);

impl Answers for Fixed {
    fn answers(&self, _: Adapted, questions: &[Question], _: &mut dyn FnMut()) -> Result<Vec<Answer>> {
        let number =
            |q: &Question| q.id.split_once("/q").unwrap().1.split(' ').next().unwrap().parse::<usize>();
        Ok(questions.iter().map(|q| self.0[number(q).unwrap()].clone()).collect())
    }
}

/// A step from fixed answers, by the trainer in micro-batches and by the step itself.
fn equals_pytorch(case: &str, device: &Device, batch_tokens: usize) {
    let golden = Golden::open();
    let dir = tempfile::tempdir().unwrap();
    let (student, teacher) = (golden.texts("student"), golden.texts("teacher"));
    let how = golden.get(&format!("{case}.how"));
    let clip = (how[0] > 0.0).then_some(how[0]);
    let mut model = model(device);
    let mut step = step(&model, lora(), batch_tokens.max(256), clip);
    for mut p in step.params(&model) {
        p.write(&golden.get(&format!("param.base_model.model.{}", p.name))).unwrap();
    }
    let answers = golden.answers();
    let mut batch = Distilled::default();
    for (i, a) in answers.iter().enumerate() {
        let learnt = a.tokens.len() + usize::from(a.ended);
        let weight = if how[1] == 1.0 { 1.0 / learnt as f32 } else { 1.0 };
        batch.push(i as u32, [&student[i], &teacher[i]], &a.tokens, a.ended, weight);
    }
    step.zero_grads().unwrap();
    let weight: f64 = batch.rows.iter().map(|r| f64::from(batch.student.weights[r.0 as usize])).sum();
    let found = step.distil(&model, &batch, Some((1.0 / weight) as f32)).unwrap();
    let means = [found.clipped / found.weight, found.divergence / found.weight];
    let losses = golden.get(&format!("{case}.losses"));
    assert_close(&format!("{case} loss"), [means[0] as f32], &losses[..1], PARITY);
    assert_close(&format!("{case} kl"), [means[1] as f32], &golden.get(&format!("{case}.kl")), PARITY);
    let share = found.limited as f32 / found.rows as f32;
    assert!((share - golden.get(&format!("{case}.clipped"))[0]).abs() < 1e-6, "{case}: {share}");
    for p in step.params(&model) {
        let want = golden.get(&format!("{case}.grad.base_model.model.{}", p.name));
        assert_close(&format!("{case} {}", p.name), p.grad().to_f32_vec().unwrap(), &want, PARITY);
    }
    // An evaluation of the same measures the same, and leaves no gradient.
    let before: Vec<Vec<f32>> = step.params(&model).iter().map(|p| p.grad().to_f32_vec().unwrap()).collect();
    assert_eq!(step.distil(&model, &batch, None).unwrap(), found);
    let after: Vec<Vec<f32>> = step.params(&model).iter().map(|p| p.grad().to_f32_vec().unwrap()).collect();
    assert_eq!(before, after);
    let shard = questions(dir.path(), [student, teacher]);
    let (s, out) =
        (TrainerSettings { per_sentence: how[1] == 1.0, ..settings(batch_tokens) }, dir.path().join("out"));
    let drawn = OnPolicy { answers: &Fixed(answers), held_out: vec![] };
    let checks = Checks { distillation: Some(Distillation::OnPolicy(drawn)), ..Checks::default() };
    train(&mut model, &mut step, &shard, checks, &s, &out, &|| false, &mut |_| {}).unwrap();
    let metrics = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let got: Vec<f32> = values(&metrics, "train/loss").into_iter().map(|x| x as f32).collect();
    assert_close(&format!("{case} losses"), got, &losses, PARITY);
}

fn values(metrics: &str, tag: &str) -> Vec<f64> {
    metrics.lines().filter_map(|l| serde_json::from_str::<Value>(l).unwrap()[tag].as_f64()).collect()
}

#[test]
fn losses_and_gradients_equal_pytorchs() {
    for case in ["whole", "clipped", "sentences"] {
        // All answers at once, and one or two at a time.
        for batch_tokens in [256, 36] {
            equals_pytorch(case, &Device::Cpu, batch_tokens);
        }
    }
}

#[test]
fn losses_and_gradients_equal_pytorchs_on_the_emulated_gpu() {
    for case in ["whole", "clipped"] {
        equals_pytorch(case, &crate::kernels::emulated(), 256);
    }
}

/// Moves every adapter away from 0.
fn disturb(step: &TrainStep, model: &Transformer) {
    for mut p in step.params(model) {
        let mut random = sdrrl::data::random::RowRandom::new(3, "disturb", &p.name);
        let old = p.value().to_f32_vec().unwrap();
        p.write(&old.iter().map(|x| x + 0.3 * (random.uniform() as f32 - 0.5)).collect::<Vec<_>>()).unwrap();
    }
}

/// Where teacher and student read the same, the divergence is that of the adapters; without adapters that change anything there is none.
#[test]
fn an_adapter_that_changes_nothing_diverges_by_its_prompt_alone() {
    let model = model(&Device::Cpu);
    let mut step = step(&model, lora(), 64, None);
    let divergence = |step: &mut TrainStep, teacher: &[u32]| -> DistilledSum {
        let mut batch = Distilled::default();
        batch.push(0, [&[5, 6, 7], teacher], &[8, 9, 10], true, 1.0);
        step.distil(&model, &batch, None).unwrap()
    };
    let same = divergence(&mut step, &[5, 6, 7]);
    assert_eq!((same.divergence, same.rows), (0.0, 4));
    assert!(divergence(&mut step, &[11, 5, 6, 7]).divergence > 1e-3);
    disturb(&step, &model);
    assert!(divergence(&mut step, &[5, 6, 7]).divergence > 1e-3);
    let full = TrainStep::new(&model, Trainable::Full, 64).unwrap();
    assert!(full.distilling(&model, None).is_err(), "no base is left to teach");
}

/// The final states of prompts and of decode steps with adapters beside the model are those of the model that they are folded into.
#[test]
fn a_model_in_training_generates_as_it_would_when_merged() {
    let device = Device::Cpu;
    let ranks = vec![("layers.0.self_attn.q_proj".into(), 5), ("layers.1.mlp.down_proj".into(), 3)];
    let some = LoraConfig { target_modules: vec!["q_proj".into(), "down_proj".into()].into(), ..lora() };
    for config in
        [lora(), LoraConfig { use_dora: true, ..lora() }, some, LoraConfig { rank_pattern: ranks, ..lora() }]
    {
        let model = model(&device);
        let mut step = step(&model, config, 64, None);
        disturb(&step, &model);
        let adapters = step.current_adapter(&model).unwrap();
        let mut merged = self::model(&device);
        merged.apply_adapter(&adapters.unwrap().to_device(&merged.spec, &device).unwrap()).unwrap();
        let prompts: [&[u32]; 2] = [&[3, 4, 5, 6, 7], &[9, 8]];
        let states = |adapted: Adapted| {
            let mut decoder = Decoder::new(adapted, 16, 32).unwrap();
            let mut layers = vec![];
            let mut see = |_, t: &sdrrl::tensor::Tensor| {
                layers.extend(t.to_f32_vec()?);
                Ok(())
            };
            decoder.hidden_states(adapted, &prompts, &mut see).unwrap();
            layers
        };
        let (own, folded) = (states(Adapted { model: &model, adapters }), states((&merged).into()));
        assert_close("states", &own, &folded, 2e-6);
        assert!(own != states((&model).into()), "the adapters change nothing");
        // Greedy replies, which take decode steps.
        let requests: Vec<Request> =
            prompts.iter().map(|p| Request { id: String::new(), tokens: p.to_vec() }).collect();
        let reply = |adapted: Adapted, batch_rows| {
            let params = SamplingParams { max_new_tokens: 20, ..SamplingParams::default() };
            let options = EngineOptions { batch_rows, batch_tokens: 8 };
            Engine::new(adapted, options).unwrap().generate(&requests, &params, &mut |_, _| {}).unwrap()
        };
        let adapted = Adapted { model: &model, adapters };
        assert_eq!(reply(adapted, 2), reply((&merged).into(), 2));
        assert_eq!(reply(adapted, 2), reply(adapted, 1));
    }
}

/// On the emulated GPU a model in training says what it says on the CPU.
#[test]
fn a_model_in_training_generates_the_same_on_the_emulated_gpu() {
    let reply = |device: &Device| {
        let model = model(device);
        let mut step = step(&model, lora(), 32, None);
        disturb(&step, &model);
        let adapters = step.current_adapter(&model).unwrap();
        let requests = [vec![3, 4, 5, 6], vec![9, 8]].map(|tokens| Request { id: String::new(), tokens });
        let params = SamplingParams { max_new_tokens: 6, ..SamplingParams::default() };
        let mut engine = Engine::new(Adapted { model: &model, adapters }, EngineOptions::default()).unwrap();
        engine.generate(&requests, &params, &mut |_, _| {}).unwrap()
    };
    assert_eq!(reply(&crate::kernels::emulated()), reply(&Device::Cpu));
}

/// Draws answers from the model.
struct Drawn;

impl Answers for Drawn {
    fn answers(&self, model: Adapted, questions: &[Question], _: &mut dyn FnMut()) -> Result<Vec<Answer>> {
        let requests: Vec<Request> =
            questions.iter().map(|q| Request { id: q.id.clone(), tokens: q.tokens.clone() }).collect();
        let params = SamplingParams {
            max_new_tokens: 8,
            temperature: 1.0,
            eos: vec![2, 5, 9, 30],
            seed: 4,
            ..Default::default()
        };
        let done =
            Engine::new(model, EngineOptions::default())?.generate(&requests, &params, &mut |_, _| {})?;
        let answer = |g: sdrrl::infer::engine::Generated| Answer {
            ended: g.finish == Finish::Stop,
            tokens: g.tokens,
            alarm: false,
        };
        Ok(done.into_iter().map(answer).collect())
    }
}

/// Bits depend neither on threads nor on interruptions, and the divergence falls.
#[test]
fn a_resumed_training_equals_an_uninterrupted_one_bit_for_bit() {
    let golden = Golden::open();
    let dir = tempfile::tempdir().unwrap();
    let shard = questions(dir.path(), [golden.texts("student"), golden.texts("teacher")]);
    let dropped = LoraConfig { dropout: 0.2, ..lora() };
    for (name, config) in [("plain", lora()), ("dora", LoraConfig { use_dora: true, ..dropped })] {
        let run = |out: &str, threads: usize, stop_after: usize| {
            let mut model = model(&Device::Cpu);
            let mut step = step(&model, config.clone(), 64, Some(0.5));
            let held_out: Vec<Answer> = golden.answers();
            let checks = Checks {
                validation: Some(&shard),
                distillation: Some(Distillation::OnPolicy(OnPolicy { answers: &Drawn, held_out })),
                ..Checks::default()
            };
            let s = TrainerSettings { batch_documents: 2, eval_every: 4, epochs: 10.0, ..settings(64) };
            let (done, out) = (Cell::new(0), dir.path().join(format!("{out}-{name}")));
            let mut count = |e| done.set(done.get() + usize::from(matches!(e, TrainEvent::Step { .. })));
            let outcome = with_threads(threads, || {
                train(
                    &mut model,
                    &mut step,
                    &shard,
                    checks,
                    &s,
                    &out,
                    &|| done.get() >= stop_after,
                    &mut count,
                )
                .unwrap()
            });
            let params: Vec<Vec<f32>> =
                step.params(&model).iter().map(|p| p.value().to_f32_vec().unwrap()).collect();
            (outcome.finished, params, fs::read_to_string(out.join("metrics.jsonl")).unwrap())
        };
        let whole = run("whole", 2, usize::MAX);
        assert!(!run("parts", 1, 4).0 && !run("parts", 3, 9).0);
        let parts = run("parts", 2, usize::MAX);
        assert_eq!(parts.2, whole.2);
        assert!(parts.1 == whole.1 && whole.0, "parameters differ");
        let held_out = values(&whole.2, "eval/loss");
        assert!(*held_out.last().unwrap() < 0.85 * held_out[0], "{name}: {held_out:?}");
        let lengths = values(&whole.2, "train/answer_tokens");
        assert!(lengths.len() == 30 && lengths.iter().any(|n| *n != lengths[0]), "{lengths:?}");
    }
}
