//! A step of beam search against its oracle.
use sdrrl::{
    device::Device,
    ops::beam_step::{BeamRules, beam_step, reference},
    tensor::DType,
};

use super::*;

/// (scores, beams, tokens) of one step.
fn step(
    logits: &[f32],
    scores: &[f32],
    beams: usize,
    forbidden: &[Vec<u32>],
    forced: &[Option<u32>],
) -> anyhow::Result<(Vec<f32>, Vec<u32>, Vec<u32>)> {
    let (rows, v) = (scores.len(), logits.len() / scores.len());
    let (batch, device) = (rows / beams, Device::Cpu);
    let lists: Vec<&[u32]> = forbidden.iter().map(Vec::as_slice).collect();
    let rules = BeamRules::new(&device, &lists, forced, v)?;
    let mut best = Tensor::zeros("best", DType::F32, &[batch, 2 * beams])?;
    let mut from = Tensor::zeros("beams", DType::U32, &[batch, 2 * beams])?;
    let mut tokens = Tensor::zeros("tokens", DType::U32, &[batch, 2 * beams])?;
    let mut logits = Tensor::from_f32("logits", &[rows, v], logits)?;
    let scores = Tensor::from_f32("scores", &[batch, beams], scores)?;
    beam_step(&mut best, &mut from, &mut tokens, &mut logits, &scores, &rules)?;
    Ok((best.to_f32_vec()?, from.to_u32_vec()?, tokens.to_u32_vec()?))
}

#[test]
fn beam_step_finds_what_a_sort_of_everything_finds() {
    for (batch, beams, v) in [(1, 1, 2), (2, 5, 301), (3, 4, 17), (1, 32, 5), (2, 3, 5000)] {
        let rows = batch * beams;
        let logits: Vec<f32> = values("logits", rows * v).iter().map(|x| x * 8.0).collect();
        let mut scores: Vec<f32> = values("scores", rows).iter().map(|x| x * 4.0 - 5.0).collect();
        if beams > 2 {
            scores[1] = f32::NEG_INFINITY;
        }
        let mut forbidden = vec![vec![]; rows];
        let mut forced = vec![None; rows];
        if v > 16 {
            // The likeliest token of the first row among others, and the last row has no choice.
            let likeliest = (0..v).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32;
            forbidden[0] = vec![likeliest, 3, 3, v as u32 - 1];
            forced[rows - 1] = Some(7);
        }
        let wide = |x: &[f32]| x.iter().map(|&x| x as f64).collect::<Vec<_>>();
        let want = reference::best(&wide(&logits), &wide(&scores), &forbidden, &forced, beams);
        let (got, from, tokens) = step(&logits, &scores, beams, &forbidden, &forced).unwrap();
        for (i, &(score, beam, token)) in want.iter().enumerate() {
            assert_eq!((from[i], tokens[i]), (beam, token), "candidate {i} of {batch} {beams} {v}");
            assert!(
                got[i] as f64 == score || (got[i] as f64 - score).abs() < 3e-6 * score.abs(),
                "{} {score}",
                got[i]
            );
        }
    }
}

#[test]
fn equal_scores_are_in_order_and_bad_rows_come_first() {
    let none = |rows: usize| (vec![vec![]; rows], vec![None; rows]);
    // Everything equal: beam 0, tokens 0 to 3.
    let (forbidden, forced) = none(2);
    let (_, from, tokens) = step(&[1.0; 14], &[0.5, 0.5], 2, &forbidden, &forced).unwrap();
    assert_eq!((from, tokens), (vec![0; 4], vec![0, 1, 2, 3]));
    // Beams of two rows alternate: each row's best token, then each row's second.
    let logits = [0.0, 2.0, 1.0, 0.0, 2.0, 1.0];
    let (scores, from, tokens) = step(&logits, &[-1.0, -1.0], 2, &forbidden, &forced).unwrap();
    assert_eq!((from, tokens), (vec![0, 1, 0, 1], vec![1, 1, 2, 2]));
    assert_eq!(scores[0], scores[1]);
    for bad in [f32::NAN, f32::INFINITY] {
        let (scores, ..) =
            step(&[0.0, 1.0, 2.0, 0.0, bad, 0.0], &[0.0, 0.0], 2, &forbidden, &forced).unwrap();
        assert!(scores[0].is_nan());
    }
    let (scores, ..) = step(&[f32::NEG_INFINITY; 6], &[0.0, 0.0], 2, &forbidden, &forced).unwrap();
    assert!(scores[0].is_nan());
    // Two tokens are left: the rest is filled up with -inf.
    let (scores, _, tokens) = step(&[1.0; 4], &[0.0, f32::NEG_INFINITY], 2, &forbidden, &forced).unwrap();
    assert_eq!((tokens, scores[2]), (vec![0, 1, 0, 1], f32::NEG_INFINITY));
}

#[test]
fn beam_step_refuses_what_does_not_fit() {
    let error = step(&[0.0; 6], &[0.0; 2], 2, &[vec![], vec![3]], &[None, None]).unwrap_err().to_string();
    assert!(error.contains("row 1") && error.contains('3'), "{error}");
    let error = step(&[0.0; 6], &[0.0; 2], 2, &[vec![], vec![]], &[None, Some(9)]).unwrap_err().to_string();
    assert!(error.contains("row 1") && error.contains('9'), "{error}");
    let none = vec![vec![]; 66];
    let error = step(&[0.0; 132], &[0.0; 66], 33, &none, &[None; 66]).unwrap_err().to_string();
    assert!(error.contains("logits"), "{error}");
}
