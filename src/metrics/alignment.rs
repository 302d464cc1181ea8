//! How alike two sets of sentence vectors are, row by row: cosine, linear CKA (Kornblith et al. 2019, section 3), retrieval at 1.
use anyhow::{Result, ensure};
use rayon::prelude::*;

/// What one layer says about parallel sentences.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Alignment {
    /// Cosine of each pair.
    pub cosines: Vec<f64>,
    /// Whether the nearest target vector of each source vector (by cosine; the first of equals) is its translation.
    pub forward: Vec<bool>,
    /// The same from target to source.
    pub backward: Vec<bool>,
    /// Each pair's part of linear CKA's three sums, <K, L>, <K, K> and <L, L>: its rows of the centred Gram matrices multiplied.
    pub cka_parts: Vec<[f64; 3]>,
}

/// The mean of a list; 0 of none.
pub fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = values.len();
    if n == 0 { 0.0 } else { values.sum::<f64>() / n as f64 }
}

impl Alignment {
    /// Of two sets of vectors, pair by pair.
    pub fn of(source: &[Vec<f32>], target: &[Vec<f32>]) -> Result<Alignment> {
        ensure!(
            source.len() == target.len() && source.len() >= 2,
            "{} source and {} target sentences: as many of both, at least 2, were expected",
            source.len(),
            target.len()
        );
        let width = source[0].len();
        ensure!(
            source.iter().chain(target).all(|v| v.len() == width && v.iter().all(|x| x.is_finite())),
            "the sentence vectors differ in length or are not finite"
        );
        let (a, b) = (normalised(source), normalised(target));
        let nearest = |from: &[Vec<f64>], to: &[Vec<f64>]| -> Vec<bool> {
            let best = |v: &Vec<f64>| {
                let scores: Vec<f64> = to.iter().map(|w| dot(v, w)).collect();
                (0..scores.len()).fold(0, |best, i| if scores[i] > scores[best] { i } else { best })
            };
            from.par_iter().enumerate().map(|(i, v)| best(v) == i).collect()
        };
        Ok(Alignment {
            cosines: a.iter().zip(&b).map(|(v, w)| dot(v, w)).collect(),
            forward: nearest(&a, &b),
            backward: nearest(&b, &a),
            cka_parts: cka_parts(source, target),
        })
    }

    /// Mean cosine of the pairs.
    pub fn cosine(&self) -> f64 {
        mean(self.cosines.iter().copied())
    }

    /// Linear CKA of the two sets, 0..1.
    pub fn cka(&self) -> f64 {
        linear_cka(&self.cka_parts)
    }

    /// The share of sentences whose translation is the nearest: from source to target, and back.
    pub fn retrieved(&self) -> (f64, f64) {
        let share = |hits: &[bool]| mean(hits.iter().map(|x| f64::from(u8::from(*x))));
        (share(&self.forward), share(&self.backward))
    }
}

pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

fn normalised(vectors: &[Vec<f32>]) -> Vec<Vec<f64>> {
    let one = |v: &Vec<f32>| {
        let norm = v.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt().max(1e-30);
        v.iter().map(|&x| f64::from(x) / norm).collect()
    };
    vectors.iter().map(one).collect()
}

/// Column means taken away.
pub(super) fn centred(vectors: &[Vec<f32>]) -> Vec<Vec<f64>> {
    let n = vectors.len().max(1) as f64;
    let width = vectors.first().map_or(0, Vec::len);
    let means: Vec<f64> =
        (0..width).map(|c| vectors.iter().map(|v| f64::from(v[c])).sum::<f64>() / n).collect();
    vectors.iter().map(|v| v.iter().zip(&means).map(|(&x, m)| f64::from(x) - m).collect()).collect()
}

/// The inner products of the rows with each other.
pub(super) fn gram(rows: &[Vec<f64>]) -> Vec<f64> {
    rows.par_iter().flat_map_iter(|v| rows.iter().map(|w| dot(v, w))).collect()
}

/// |YᵀX|² / (|XᵀX| |YᵀY|) of centred X and Y, from the pairs' parts of the sums.
pub fn linear_cka(parts: &[[f64; 3]]) -> f64 {
    let sum = |k: usize| parts.iter().map(|p| p[k]).sum::<f64>();
    let norm = (sum(1) * sum(2)).sqrt();
    if norm > 0.0 { sum(0) / norm } else { 0.0 }
}

/// By the Gram matrices: the same number without matrices of the model's width squared.
fn cka_parts(source: &[Vec<f32>], target: &[Vec<f32>]) -> Vec<[f64; 3]> {
    let (k, l) = (gram(&centred(source)), gram(&centred(target)));
    let rows = k.chunks(source.len()).zip(l.chunks(target.len()));
    rows.map(|(k, l)| [dot(k, l), dot(k, k), dot(l, l)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotated_and_scaled_copy_is_fully_alike_for_cka_and_a_shuffled_one_is_found() {
        let a: Vec<Vec<f32>> = (0..6).map(|i| vec![i as f32, (i * i) as f32, 1.0]).collect();
        // Axes exchanged, one mirrored, doubled: linear CKA knows no difference.
        let b: Vec<Vec<f32>> = a.iter().map(|v| vec![-2.0 * v[1], 2.0 * v[0], 7.0]).collect();
        let found = Alignment::of(&a, &b).unwrap();
        assert!((found.cka() - 1.0).abs() < 1e-12, "{found:?}");
        let same = Alignment::of(&a, &a).unwrap();
        assert!(
            same.forward.iter().chain(&same.backward).all(|x| *x) && (same.cosines[1] - 1.0).abs() < 1e-12
        );
        let turned: Vec<Vec<f32>> = a.iter().rev().cloned().collect();
        assert!(Alignment::of(&a, &turned).unwrap().forward.iter().filter(|x| **x).count() < 2);
        assert!(Alignment::of(&a, &a[1..]).is_err() && Alignment::of(&a[..1], &a[..1]).is_err());
    }
}
