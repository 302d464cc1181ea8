//! How alike two sets of sentence vectors are, row by row: cosine, linear CKA (Kornblith et al. 2019, section 3), retrieval at 1; and a
//! plane to look at them in.
use anyhow::{Result, ensure};
use nalgebra::DMatrix;
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
    /// Linear CKA of the two sets, 0..1.
    pub cka: f64,
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
            cka: linear_cka(source, target),
        })
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
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
fn centred(vectors: &[Vec<f32>]) -> Vec<Vec<f64>> {
    let n = vectors.len().max(1) as f64;
    let width = vectors.first().map_or(0, Vec::len);
    let means: Vec<f64> =
        (0..width).map(|c| vectors.iter().map(|v| f64::from(v[c])).sum::<f64>() / n).collect();
    vectors.iter().map(|v| v.iter().zip(&means).map(|(&x, m)| f64::from(x) - m).collect()).collect()
}

/// The inner products of the rows with each other.
fn gram(rows: &[Vec<f64>]) -> Vec<f64> {
    rows.par_iter().flat_map_iter(|v| rows.iter().map(|w| dot(v, w))).collect()
}

/// |YᵀX|² / (|XᵀX| |YᵀY|) of centred X and Y, by the Gram matrices: the same number without matrices of the model's width squared.
fn linear_cka(source: &[Vec<f32>], target: &[Vec<f32>]) -> f64 {
    let (k, l) = (gram(&centred(source)), gram(&centred(target)));
    let norm = (dot(&k, &k) * dot(&l, &l)).sqrt();
    if norm > 0.0 { dot(&k, &l) / norm } else { 0.0 }
}

/// The two directions in which the vectors differ most (principal components): each vector's place in their plane, and the share of the
/// variance that each direction explains. Signs are fixed by the first vector, so that equal inputs give equal pictures.
pub fn principal_plane(vectors: &[Vec<f32>]) -> (Vec<(f64, f64)>, [f64; 2]) {
    let n = vectors.len();
    if n < 2 {
        return (vec![(0.0, 0.0); n], [0.0; 2]);
    }
    let matrix = DMatrix::from_vec(n, n, gram(&centred(vectors)));
    let trace = matrix.trace().max(1e-300);
    let eigen = matrix.symmetric_eigen();
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|a, b| eigen.eigenvalues[*b].total_cmp(&eigen.eigenvalues[*a]));
    let axis = |k: usize| -> Vec<f64> {
        let (value, column) = (eigen.eigenvalues[order[k]].max(0.0), eigen.eigenvectors.column(order[k]));
        let sign = if column[0] < 0.0 { -1.0 } else { 1.0 };
        column.iter().map(|x| x * sign * value.sqrt()).collect()
    };
    let (x, y) = (axis(0), axis(1));
    let share = |k: usize| eigen.eigenvalues[order[k]].max(0.0) / trace;
    (x.into_iter().zip(y).collect(), [share(0), share(1)])
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
        assert!((found.cka - 1.0).abs() < 1e-12, "{found:?}");
        let same = Alignment::of(&a, &a).unwrap();
        assert!(
            same.forward.iter().chain(&same.backward).all(|x| *x) && (same.cosines[1] - 1.0).abs() < 1e-12
        );
        let turned: Vec<Vec<f32>> = a.iter().rev().cloned().collect();
        assert!(Alignment::of(&a, &turned).unwrap().forward.iter().filter(|x| **x).count() < 2);
        assert!(Alignment::of(&a, &a[1..]).is_err() && Alignment::of(&a[..1], &a[..1]).is_err());
    }

    #[test]
    fn the_plane_holds_what_differs_most() {
        let vectors: Vec<Vec<f32>> = (0..5).map(|i| vec![10.0 * i as f32, (i % 2) as f32, 3.0]).collect();
        let (points, share) = principal_plane(&vectors);
        assert!(share[0] > 0.99 && share[0] + share[1] > 0.999_999, "{share:?}");
        assert!(points.windows(2).all(|w| ((w[1].0 - w[0].0).abs() - 10.0).abs() < 0.1), "{points:?}");
    }
}
