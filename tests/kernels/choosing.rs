//! Sampling and beam search: the CPU arm's tokens and scores, bit for bit (the arm is held to its oracles in `tests/ops`).
use sdrrl::{
    ops::{
        beam_step::{BeamRules, beam_step},
        sampling::{Sampler, Sampling, SamplingRow},
    },
    tensor::DType::{F32, U32},
};

use super::*;

const GREEDY: Sampling =
    Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0, seed: 7 };

/// Logits of which many are equal, some -inf.
fn logits(name: &str, n: usize) -> Vec<f32> {
    let value = |x: f32| if x < -0.9 { f32::NEG_INFINITY } else { (x * 40.0).round() / 4.0 };
    uniform(name, n).into_iter().map(value).collect()
}

fn sampling(device: &Device, vocab: usize) {
    let n = 6;
    let values = logits("sampling", n * vocab);
    let seen: Vec<u32> = (0..vocab as u32).step_by(3).collect();
    let banned: Vec<u32> = (1..vocab as u32).step_by(7).collect();
    let rows: Vec<SamplingRow> = (0..n)
        .map(|i| SamplingRow {
            id: 0x1234_5678_9abc_def0 + i as u64,
            step: i as u32 * 1000,
            seen: if i % 2 == 0 { &seen } else { &[] },
            banned: if i % 3 == 1 { &banned } else { &[] },
        })
        .collect();
    let drawn = Sampling { temperature: 2.0, ..GREEDY };
    for how in [
        GREEDY,
        drawn,
        Sampling { top_k: 5, repetition_penalty: 1.3, ..drawn },
        Sampling { top_p: 0.9, temperature: 0.7, ..drawn },
        Sampling { top_k: vocab / 2, top_p: 0.6, ..drawn },
        Sampling { top_k: 1, temperature: 1e-40, ..drawn },
        Sampling { min_p: 0.05, ..drawn },
        Sampling { min_p: 0.2, top_k: 9, top_p: 0.9, ..drawn },
    ] {
        let run = |device: &Device| {
            let mut sampler = Sampler::new(device, n, 8 * vocab).unwrap();
            let mut t = put(device, F32, &[n, vocab], &values);
            let tokens = sampler.sample(&mut t, &rows, &how).unwrap();
            (tokens, t.to_f32_vec().unwrap())
        };
        let (got, want) = (run(device), run(&Device::Cpu));
        assert!(want.0.iter().all(Option::is_some));
        assert_eq!(got, want, "{vocab} {how:?}");
    }
}

/// Rows that cannot be sampled say so and leave the others alone.
fn bad_rows(device: &Device) {
    let (n, vocab) = (5, 40);
    let mut values = logits("bad", n * vocab);
    values[39] = f32::NAN;
    values[vocab..2 * vocab].fill(f32::NEG_INFINITY);
    values[2 * vocab + 33] = f32::INFINITY;
    let all: Vec<u32> = (0..vocab as u32).collect();
    let mut rows = vec![SamplingRow::default(); n];
    rows[3].banned = &all;
    for how in [GREEDY, Sampling { temperature: 1.0, top_k: 3, top_p: 0.5, ..GREEDY }] {
        let mut sampler = Sampler::new(device, n, vocab).unwrap();
        let tokens = sampler.sample(&mut put(device, F32, &[n, vocab], &values), &rows, &how).unwrap();
        assert_eq!(tokens[..4], [None; 4]);
        assert!(tokens[4].is_some());
    }
}

fn beams(device: &Device, batch: usize, beams: usize, vocab: usize) {
    let rows = batch * beams;
    let values: Vec<f32> = logits("beams", rows * vocab).into_iter().map(|x| x.max(-30.0)).collect();
    // Equal hypotheses, so that candidates tie; one that is dead, where another is left.
    let scores: Vec<f32> =
        (0..rows).map(|i| if i % beams == 2 { f32::NEG_INFINITY } else { -((i / 2) as f32) }).collect();
    let list: Vec<u32> = vec![vocab as u32 - 1, 0, 0, 1];
    let forbidden: Vec<&[u32]> = (0..rows).map(|i| if i % 3 == 0 { &list[..] } else { &[] }).collect();
    let forced: Vec<Option<u32>> =
        (0..rows).map(|i| (i % 5 == 4).then_some(i as u32 % vocab as u32)).collect();
    let run = |device: &Device| {
        let rules = BeamRules::new(device, &forbidden, &forced, vocab).unwrap();
        let best = [batch, 2 * beams];
        let mut out = out(device, F32, &best);
        let mut from = Tensor::zeros_on(device, "beams", U32, &best).unwrap();
        let mut tokens = Tensor::zeros_on(device, "tokens", U32, &best).unwrap();
        let mut logits = put(device, F32, &[rows, vocab], &values);
        let own = put(device, F32, &[batch, beams], &scores);
        beam_step(&mut out, &mut from, &mut tokens, &mut logits, &own, &rules).unwrap();
        let scores: Vec<u32> = out.to_f32_vec().unwrap().into_iter().map(f32::to_bits).collect();
        (scores, from.to_u32_vec().unwrap(), tokens.to_u32_vec().unwrap())
    };
    assert_eq!(run(device), run(&Device::Cpu), "{batch} {beams} {vocab}");
}

fn a_row_with_a_nan_comes_first(device: &Device) {
    let mut logits = put(device, F32, &[2, 5], &[0.0, 1.0, 2.0, 3.0, 4.0, 0.0, f32::NAN, 0.0, 0.0, 0.0]);
    let (rules, own) = (BeamRules::none(device, 2).unwrap(), put(device, F32, &[1, 2], &[0.0, 0.0]));
    let mut best = out(device, F32, &[1, 4]);
    let [mut from, mut tokens] = [(); 2].map(|_| Tensor::zeros_on(device, "t", U32, &[1, 4]).unwrap());
    beam_step(&mut best, &mut from, &mut tokens, &mut logits, &own, &rules).unwrap();
    assert!(best.to_f32_vec().unwrap().iter().all(|x| x.is_nan()));
    assert_eq!(from.to_u32_vec().unwrap(), [1; 4]);
}

cases! {
    sampling_of_5(device) { sampling(device, 5) }
    sampling_of_97(device) { sampling(device, 97) }
    sampling_of_more_than_two_rounds(device) { sampling(device, 1301) }
    sampling_without_a_choice(device) { bad_rows(device) }
    beam_step_of_one_beam(device) { beams(device, 2, 1, 2) }
    beam_step_of_4_beams(device) { beams(device, 2, 4, 1301) }
    beam_step_of_5_beams_and_few_tokens(device) { beams(device, 3, 5, 7) }
    beam_step_of_32_beams(device) { beams(device, 1, 32, 70) }
    beam_step_with_a_nan(device) { a_row_with_a_nan_comes_first(device) }
}
