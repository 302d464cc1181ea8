//! Sampling: the tokens and frequencies of its oracle, and the invariances that generation relies on.
use sdrrl::{
    device::Device,
    ops::sampling::{Sampler, Sampling, SamplingRow, reference},
};

use super::*;

const HOW: Sampling =
    Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0, seed: 3 };

fn tokens(logits: &[f32], rows: &[SamplingRow], how: &Sampling) -> Vec<Option<u32>> {
    let v = logits.len() / rows.len();
    let mut t = Tensor::from_f32("logits", &[rows.len(), v], logits).unwrap();
    let listed = rows.iter().map(|r| r.seen.len() + r.banned.len()).sum();
    Sampler::new(&Device::Cpu, rows.len(), listed).unwrap().sample(&mut t, rows, how).unwrap()
}

#[test]
fn draws_have_the_oracles_frequencies() {
    let (v, n) = (37, 20_000);
    // In quarters, so that many are equal.
    let logits: Vec<f32> = values("sampling", v).iter().map(|x| (x * 12.0).round() / 4.0).collect();
    let (seen, banned) = ([0u32, 5, 6, 20], [3u32, 30]);
    for how in [
        HOW,
        Sampling { temperature: 0.5, ..HOW },
        Sampling { top_k: 4, ..HOW },
        Sampling { top_k: 9, temperature: 3.0, ..HOW },
        Sampling { top_p: 0.83, ..HOW },
        Sampling { top_p: 0.001, ..HOW },
        Sampling { top_k: 20, top_p: 0.71, repetition_penalty: 1.7, ..HOW },
        // No logit in quarters lies where the threshold is.
        Sampling { min_p: 0.3, ..HOW },
        Sampling { min_p: 1.0, ..HOW },
        Sampling { min_p: 0.03, top_k: 12, temperature: 1.6, ..HOW },
        Sampling { min_p: 0.4, top_p: 0.5, ..HOW },
        Sampling { min_p: 1e-9, top_p: 0.83, ..HOW },
        Sampling { temperature: 0.0, repetition_penalty: 1.7, ..HOW },
    ] {
        let row = SamplingRow { seen: &seen, banned: &banned, ..Default::default() };
        let want = reference::probabilities(&logits, &row, &how);
        let rows: Vec<SamplingRow> =
            (0..n).map(|i| SamplingRow { id: i as u64 % 100, step: i as u32 / 100, ..row }).collect();
        let mut counts = vec![0.0; v];
        tokens(&logits.repeat(n), &rows, &how).iter().for_each(|t| counts[t.unwrap() as usize] += 1.0);
        for (i, (&p, &count)) in want.iter().zip(&counts).enumerate() {
            let possible = if p > 0.0 { count > 0.0 || p < 1e-3 } else { count == 0.0 };
            assert!(possible, "{how:?}: token {i} with probability {p} came {count} times");
            // Five standard deviations.
            let allowed = 5.0 * (p * (1.0 - p) / n as f64).sqrt() + 1e-6;
            assert!((count / n as f64 - p).abs() <= allowed, "{how:?}: token {i}: {p} {count}");
        }
    }
}

#[test]
fn a_rows_token_depends_on_nothing_but_the_row() {
    let (v, n) = (3001, 16);
    let logits: Vec<f32> = values("rows", n * v).iter().map(|x| x * 4.0).collect();
    let rows: Vec<SamplingRow> =
        (0..n).map(|i| SamplingRow { id: i as u64, step: 5, ..Default::default() }).collect();
    let how = Sampling { top_k: 100, top_p: 0.9, ..HOW };
    let all = crate::common::with_threads(3, || tokens(&logits, &rows, &how));
    for i in 0..n {
        assert_eq!(tokens(&logits[i * v..][..v], &rows[i..i + 1], &how)[0], all[i]);
    }
    let other = |change: &dyn Fn(SamplingRow) -> SamplingRow, seed| {
        let rows: Vec<SamplingRow> = rows.iter().map(|&r| change(r)).collect();
        tokens(&logits, &rows, &Sampling { seed, ..how })
    };
    assert_ne!(other(&|r| r, 4), all);
    assert_ne!(other(&|r| SamplingRow { step: 6, ..r }, 3), all);
    assert_ne!(other(&|r| SamplingRow { id: r.id + 100, ..r }, 3), all);
}

#[test]
fn lists_that_do_not_rise_or_leave_the_vocabulary_are_named() {
    let mut t = Tensor::from_f32("logits", &[1, 4], &[0.0; 4]).unwrap();
    let mut sampler = Sampler::new(&Device::Cpu, 1, 4).unwrap();
    for bad in [&[2u32, 2][..], &[3, 1], &[4]] {
        let row = SamplingRow { banned: bad, ..Default::default() };
        let error = sampler.sample(&mut t, &[row], &HOW).unwrap_err().to_string();
        assert!(error.contains("row 0") && error.contains("logits"), "{error}");
    }
    assert!(sampler.sample(&mut t, &[SamplingRow::default(); 2], &HOW).is_err());
}
