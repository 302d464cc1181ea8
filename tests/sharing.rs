//! What ranks keep in parts, and what they exchange while they compute: order, bytes, bits, memory, faults.
use std::{fs, process::Output, rc::Rc};

use sdrrl::{
    device::Device,
    distributed::{team::Team, world::World},
    models::transformer::{
        train_step::{TrainStep, Trainable},
        weights::Transformer,
    },
    tensor::DType,
    train::{
        optimizer::{Optimizer, OptimizerKind},
        shares::Shares,
    },
};
use serde_json::Value;

use crate::{
    cli::text,
    distributed::{Work, within},
};

/// Elements of an adapter.
fn elements(adapter: &[u8]) -> usize {
    let adapter = safetensors::SafeTensors::deserialize(adapter).unwrap();
    adapter.tensors().iter().map(|(_, t)| t.shape().iter().product::<usize>()).sum()
}

/// [calls, bytes] of a collective, by rank.
fn counts(log: &str, collective: &str) -> Vec<[usize; 2]> {
    let text = fs::read_to_string(log).unwrap();
    let of = |line: &str| serde_json::from_str::<Value>(line).unwrap()[collective].clone();
    text.lines().map(|line| serde_json::from_value(of(line)).unwrap()).collect()
}

/// Spans of a trace as they begin and end, each with its field's value: `B backward_layer 3`.
fn spans(path: &str) -> Vec<String> {
    let events: Vec<Value> = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let of = |e: &Value| {
        let field = e["args"].as_object().and_then(|args| args.values().next());
        let field = field.map_or(String::new(), |x| x.to_string().replace('"', ""));
        Some(format!("{} {} {field}", e["ph"].as_str()?, e["name"].as_str()?).trim_end().to_string())
    };
    events.iter().filter(|e| e["ph"] != "M").filter_map(of).collect()
}

/// Two ranks, of which the first records its spans; these.
fn traced(work: &Work, out: &str, args: &[&str], variables: &[(&str, &str)]) -> Vec<String> {
    let trace = work.path(&format!("{out}.json"));
    let first = [args, &["--trace", &trace]].concat();
    let ends = work.run(out, &[&first, args], variables);
    assert!(ends.iter().all(|end| end.status.success()), "{ends:?}");
    spans(&trace)
}

/// Where the first of `spans` from `from` on stands.
#[track_caller]
fn find(spans: &[String], from: usize, what: &str) -> usize {
    let found = spans[from..].iter().position(|s| s == what);
    from + found.unwrap_or_else(|| panic!("no {what} from {from} on: {:?}", &spans[from..]))
}

const LAYERS: usize = 4;

#[test]
fn a_layers_sum_begins_before_the_backward_pass_of_the_layer_below_it_has_ended() {
    let work = Work::new();
    for (i, args) in [&["--reduce-dtype", "f32"][..], &["--shard", "optimizer"], &["--shard", "weights"]]
        .into_iter()
        .enumerate()
    {
        let spans = traced(&work, &format!("traced-{i}"), args, &[]);
        // The last micro-batch of each of two steps.
        let sums = |l| spans.iter().filter(|s| **s == format!("B sum_gradients Layer({l})")).count();
        assert!((0..LAYERS).all(|l| sums(l) == 2), "{args:?}: {spans:?}");
        let mut from = 0;
        for _ in 0..2 {
            from = find(&spans, from, &format!("B sum_gradients Layer({})", LAYERS - 1));
            for l in (1..LAYERS).rev() {
                let sum = find(&spans, from, &format!("B sum_gradients Layer({l})"));
                let below = find(&spans, from, &format!("E backward_layer {}", l - 1));
                assert!(sum < below, "{args:?}: layer {l}: {:?}", &spans[from..]);
                from = sum;
            }
            from = find(&spans, from, "E backward");
        }
    }
}

#[test]
fn ranks_send_the_bytes_that_the_formulas_say() {
    let work = Work::new();
    let logged = |name: &str, args: &[&str]| {
        let log = work.path(&format!("{name}.log"));
        let done = work.trained(name, 3, args, &[("SDRRL_REHEARSAL_NCCL_LOG", &log)]);
        (elements(&done.0), log)
    };
    // Two steps.
    let (n, log) = logged("bf16", &["--reduce-dtype", "bf16"]);
    assert!(counts(&log, "all_reduce").iter().all(|c| c[1] == 2 * 2 * n), "{:?}", counts(&log, "all_reduce"));
    let (n, log) = logged("optimizer", &["--shard", "optimizer"]);
    assert_eq!(counts(&log, "all_reduce"), [[0, 0]; 3]);
    assert!(counts(&log, "reduce").iter().all(|c| c[1] == 2 * 4 * n), "{:?}", counts(&log, "reduce"));
    // Every parameter once at first and once a step, and rank 0's words.
    let sent = counts(&log, "broadcast");
    assert!(sent.iter().all(|c| (3 * 4 * n..3 * 4 * n + 8192).contains(&c[1])), "{sent:?}");
    let (n, log) = logged("both", &["--shard", "optimizer", "--reduce-dtype", "bf16"]);
    assert!(counts(&log, "reduce").iter().all(|c| c[1] == 2 * 2 * n), "{:?}", counts(&log, "reduce"));
}

/// A layer is gathered twice a micro-batch, but for the two that are there when the pass turns.
#[test]
fn a_layer_is_gathered_while_its_neighbour_computes() {
    let work = Work::new();
    let spans = traced(&work, "gathered", &["--shard", "weights"], &[]);
    let steps: Vec<usize> = (0..spans.len()).filter(|&i| spans[i].starts_with("B train_step")).collect();
    for (i, &begin) in steps.iter().enumerate() {
        let end = begin + spans[begin..].iter().position(|s| s.starts_with("E train_step")).unwrap();
        let step = &spans[begin..end];
        let passes = step.iter().filter(|s| *s == "B backward").count();
        let gathers = step.iter().filter(|s| s.starts_with("B gather_layer")).count();
        // An evaluation came before the first, and left the last two.
        let first = if i == 0 { 2 } else { 0 };
        assert_eq!(gathers, 2 * (LAYERS - 2) * passes + first, "step {i}: {step:?}");
        let mut from = find(step, 0, "B backward");
        for l in (2..LAYERS).rev() {
            from = find(step, from, &format!("B backward_layer {l}"));
            let next = find(step, from, &format!("E backward_layer {l}"));
            if l < LAYERS - 1 {
                let gather = find(step, from, &format!("B gather_layer {}", l - 1));
                assert!(gather < next, "{step:?}");
            }
        }
    }
}

#[test]
fn what_is_kept_in_parts_changes_no_bit_in_fixed_order_and_nearly_none_otherwise() {
    let work = Work::new();
    let fixed = ["--reduce", "fixed"];
    for kind in ["adamw", "muon"] {
        let common = [&fixed[..], &["--optimizer", kind]].concat();
        let alone = work.trained(&format!("{kind}-1"), 1, &common, &[]);
        for (ranks, shard) in [(2, "optimizer"), (3, "weights")] {
            let args = [&common[..], &["--shard", shard]].concat();
            let shared = work.trained(&format!("{kind}-{ranks}"), ranks, &args, &[]);
            assert!(alone == shared, "{kind}, {ranks} ranks, shard {shard}");
        }
    }
    let bf16 = [&fixed[..], &["--dtype", "bf16"]].concat();
    let alone = work.trained("bf16-1", 1, &bf16, &[]);
    let parted = [&bf16[..], &["--shard", "weights"]].concat();
    assert!(alone == work.trained("bf16-4", 4, &parted, &[]), "a base in bf16");
    let sum = work.trained("sum", 1, &[], &[]);
    for (ranks, args) in
        [(3, &["--shard", "optimizer"][..]), (2, &["--shard", "weights"]), (8, &["--shard", "weights"])]
    {
        let done = work.trained(&format!("sum-{ranks}"), ranks, args, &[]);
        within(&sum.1, &done.1, 1e-6);
    }
}

/// Model and metrics of `ranks` that train all weights.
#[track_caller]
fn all_weights(work: &Work, out: &str, ranks: usize, args: &[&str]) -> [Vec<u8>; 2] {
    let args = [&["--method", "full", "--lr", "1e-3"], args].concat();
    let ends = work.run(out, &vec![&args[..]; ranks], &[]);
    assert!(ends.iter().all(|end| end.status.success()), "{ends:?}");
    let folder = work.dir.path().join(out);
    ["model.safetensors", "metrics.jsonl"].map(|name| fs::read(folder.join(name)).unwrap())
}

#[test]
fn all_weights_are_trained_by_ranks_that_share_any_optimizers_state() {
    let work = Work::new();
    for kind in ["adamw", "adamw-8bit", "adafactor", "muon"] {
        let fixed = ["--reduce", "fixed", "--optimizer", kind];
        let alone = all_weights(&work, &format!("{kind}-1"), 1, &fixed);
        let shared = [&fixed[..], &["--shard", "optimizer"]].concat();
        assert!(alone == all_weights(&work, &format!("{kind}-3"), 3, &shared), "{kind}");
        // Codes of 8 bits make small differences larger.
        let tolerance = if kind == "adamw-8bit" { 1e-3 } else { 1e-5 };
        let sums =
            all_weights(&work, &format!("{kind}-sum"), 2, &["--optimizer", kind, "--shard", "optimizer"]);
        let [alone, sums] = [alone, sums].map(|all| text(&all[1]));
        within(&alone, &sums, tolerance);
    }
}

/// Rounded before it is sent and at each of n - 1 additions, a sum is off by n 2^-9 of what is added at the most.
#[test]
fn sums_in_bf16_stay_within_their_bound() {
    let work = Work::new();
    let alone = work.trained("alone", 1, &[], &[]);
    let ranks = 3;
    let done = work.trained("bf16", ranks, &["--reduce-dtype", "bf16"], &[]);
    assert!(alone.1 != done.1);
    within(&alone.1, &done.1, 4.0 * ranks as f64 / 512.0);
}

/// Fails on all ranks, and says so once.
#[track_caller]
fn ended(fault: &str, ends: &[Output]) {
    assert!(ends.iter().all(|end| !end.status.success()), "{fault}: {ends:?}");
    let said: String = ends.iter().map(|end| text(&end.stderr)).collect();
    assert_eq!(said.matches("error: ").count(), 1, "{fault}: {said}");
}

#[test]
fn a_fault_within_the_new_exchanges_ends_all_and_the_same_ranks_go_on_to_the_same_bits() {
    let work = Work::new();
    for (i, kept) in [
        &["--shard", "optimizer"][..],
        &["--shard", "weights"],
        &["--reduce-dtype", "bf16"],
        &["--shard", "weights", "--reduce", "fixed"],
    ]
    .into_iter()
    .enumerate()
    {
        let args = [kept, &["--checkpoint-every", "1"]].concat();
        let log = work.path(&format!("{i}.log"));
        let whole = work.trained(&format!("whole-{i}"), 2, &args, &[("SDRRL_REHEARSAL_NCCL_LOG", &log)]);
        let all = |name| counts(&log, name)[0][0];
        let calls = ["all_reduce", "all_gather", "broadcast", "reduce"].map(all).iter().sum::<usize>();
        // In the first step, in the middle, behind the last one.
        for (what, call) in [("die", calls / 3), ("count", calls / 2), ("die", calls - 8)] {
            let (out, fault) = (format!("{what}-{call}-{i}"), format!("{what}:1:{call}"));
            ended(&fault, &work.run(&out, &[&args, &args], &[("SDRRL_REHEARSAL_NCCL", &fault)]));
            assert!(whole == work.trained(&out, 2, &args, &[]), "{kept:?}: {fault}");
        }
        let late = format!("late:1:{}", calls / 2);
        let out = format!("late-{i}");
        assert!(
            whole == work.trained(&out, 2, &args, &[("SDRRL_REHEARSAL_NCCL", &late)]),
            "{kept:?}: {late}"
        );
    }
}

#[test]
fn what_cannot_be_kept_in_parts_or_differs_between_ranks_is_named() {
    let work = Work::new();
    for (args, parts) in [
        (&["--reduce", "fixed", "--reduce-dtype", "bf16"][..], ["reduce-dtype bf16", "bit for bit"]),
        (&["--shard", "weights", "--dora"], ["shard weights", "DoRA"]),
        (&["--shard", "weights", "--method", "full"], ["shard weights", "use shard optimizer"]),
        (&["--shard", "weights", "--keep-source", "kl"], ["shard weights", "keep-source"]),
        (&["--shard", "weights", "--base-dtype", "stored"], ["shard weights", "blocks"]),
    ] {
        let said = work.failed(&[args, args], &[]);
        assert!(parts.iter().all(|part| said.contains(part)), "{args:?}: {said}");
    }
    let said = work.failed(&[&[], &["--shard", "optimizer"]], &[]);
    assert!(said.contains("rank 1 on") && said.contains("shard: \"none\" -> \"optimizer\""), "{said}");
}

/// Bytes that a device holds after `work` beside what it held before, and what came of it.
fn taken<T>(device: &Device, work: impl FnOnce() -> T) -> (usize, T) {
    let held = || device.gpu().unwrap().held_bytes();
    let before = held();
    let done = work();
    (held() - before, done)
}

#[test]
fn a_rank_holds_about_its_share_of_the_optimizers_state() {
    let model = Transformer::load("assets/quickstart/model".as_ref(), DType::F32).unwrap();
    let settings =
        |kind| sdrrl::train::optimizer::OptimizerSettings { kind, ..crate::training::settings().optimizer };
    let whole = |kind| {
        let device = Device::emulated();
        let model = model.to_device(&device).unwrap();
        let params = TrainStep::new(&model, Trainable::Full, 8).unwrap().params(&model);
        taken(&device, || Optimizer::new(&params, settings(kind)).unwrap()).0
    };
    let size = 4;
    for (kind, most) in [
        (OptimizerKind::Adamw, 1.1),
        (OptimizerKind::Adamw8bit, 1.2),
        (OptimizerKind::Muon, 1.8),
        (OptimizerKind::Adafactor, 3.0),
    ] {
        for rank in 0..size {
            let device = Device::emulated();
            let model = model.to_device(&device).unwrap();
            let params = TrainStep::new(&model, Trainable::Full, 8).unwrap().params(&model);
            let team = Rc::new(Team::without_others(World::new(rank, size).unwrap()));
            let shares = Shares::new(&params, kind, size);
            let shared = || Optimizer::shared(&params, settings(kind), (&team, &shares, true)).unwrap();
            let share = taken(&device, shared).0 as f64 / whole(kind) as f64;
            assert!(share * (size as f64) < most, "{}: rank {rank} holds {share} of it", kind.name());
        }
    }
}

#[test]
fn a_rank_holds_its_part_of_the_layers_and_two_whole_ones() {
    let model = Transformer::load("assets/quickstart/model".as_ref(), DType::Bf16).unwrap();
    let device = Device::emulated();
    let (whole, _copy) = taken(&device, || model.to_device(&device).unwrap());
    let spec = &model.spec;
    let matrices: usize = model.linears().map(|(_, _, linear)| linear.weight.bytes()).sum();
    assert!(2 * matrices > whole / 2 && spec.layers.len() == LAYERS);
    for size in [2, 4, 8] {
        let device = Device::emulated();
        let team = Rc::new(Team::without_others(World::new(size - 1, size).unwrap()));
        let (held, parts) = taken(&device, || model.in_parts(&device, &team).unwrap());
        let expected = whole - matrices + matrices / size + 2 * matrices / LAYERS;
        // What is rounded up to whole blocks of 256 bytes a layer and rank.
        let rounding = 256 * size * (LAYERS + 2);
        assert!(held <= expected + rounding && parts.bytes() <= held, "{size}: {held} of {expected}");
    }
}
