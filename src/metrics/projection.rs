//! A plane to look at vectors in: principal components, or t-SNE (van der Maaten and Hinton 2008).
use anyhow::{Result, ensure};
use nalgebra::DMatrix;
use serde::{Deserialize, Serialize};

use super::alignment::{centred, gram};

/// How vectors get into a plane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Projection {
    /// The two principal components: distances keep their meaning
    #[default]
    Pca,
    /// t-SNE: neighbours stay together, distances between groups mean nothing
    Tsne,
}

impl Projection {
    /// An error by name in a build without t-SNE.
    pub fn check(self) -> Result<()> {
        let lacking = self == Projection::Tsne && !cfg!(feature = "tsne");
        ensure!(
            !lacking,
            "t-SNE is not in this build: build it with `--features tsne`, or take principal components (pca)"
        );
        Ok(())
    }

    /// As people write it.
    pub fn name(self) -> &'static str {
        if self == Projection::Pca { "principal components" } else { "t-SNE" }
    }
}

/// Vectors in a plane.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plane {
    /// A point for each vector.
    pub points: Vec<(f64, f64)>,
    /// Principal components: the share of the variance that each axis explains.
    pub explained: Option<[f64; 2]>,
}

#[cfg(feature = "tsne")]
/// t-SNE's perplexity (scikit-learn's default), as far as the number of vectors allows it.
const PERPLEXITY: f64 = 30.0;

/// Equal vectors give an equal picture: nothing is drawn at random.
pub fn project(vectors: &[Vec<f32>], how: Projection) -> Result<Plane> {
    let (points, explained) = principal_plane(vectors);
    match how {
        Projection::Pca => Ok(Plane { points, explained: Some(explained) }),
        Projection::Tsne => Ok(Plane { points: neighbourhoods(vectors, &points)?, explained: None }),
    }
}

/// The two directions in which the vectors differ most (principal components): each vector's place in their plane, and the share of the
/// variance that each direction explains. Signs are fixed by the first vector, so that equal inputs give equal pictures.
fn principal_plane(vectors: &[Vec<f32>]) -> (Vec<(f64, f64)>, [f64; 2]) {
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

/// Exact t-SNE, begun from the principal components scaled to a standard deviation of 1e-4 (Kobak and Berens 2019; scikit-learn's
/// `init="pca"`) instead of from random points. One thread: sums of several would end in other orders.
#[cfg(feature = "tsne")]
fn neighbourhoods(vectors: &[Vec<f32>], start: &[(f64, f64)]) -> Result<Vec<(f64, f64)>> {
    use anyhow::Context;
    let n = vectors.len();
    ensure!(n >= 4, "t-SNE needs 4 vectors or more, there are {n}: take principal components");
    let perplexity = PERPLEXITY.min((n - 1) as f64 / 3.0);
    let spread = (start.iter().map(|p| p.0 * p.0).sum::<f64>() / n as f64).sqrt().max(1e-300);
    let scaled: Vec<f64> = start.iter().flat_map(|p| [p.0, p.1]).map(|x| x / spread * 1e-4).collect();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().context("start a thread for t-SNE")?;
    let distance = |a: &Vec<f32>, b: &Vec<f32>| {
        a.iter().zip(b).map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2)).sum::<f64>().sqrt()
    };
    let flat = pool.install(|| {
        let mut tsne: bhtsne::tSNE<f64, Vec<f32>> = bhtsne::tSNE::new(vectors);
        tsne.perplexity(perplexity).initial_embedding(scaled).exact(distance).embedding()
    });
    Ok(flat.chunks_exact(2).map(|p| (p[0], p[1])).collect())
}

#[cfg(not(feature = "tsne"))]
fn neighbourhoods(_: &[Vec<f32>], _: &[(f64, f64)]) -> Result<Vec<(f64, f64)>> {
    Projection::Tsne.check().map(|()| vec![])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plane_holds_what_differs_most() {
        let vectors: Vec<Vec<f32>> = (0..5).map(|i| vec![10.0 * i as f32, (i % 2) as f32, 3.0]).collect();
        let (points, share) = principal_plane(&vectors);
        assert!(share[0] > 0.99 && share[0] + share[1] > 0.999_999, "{share:?}");
        assert!(points.windows(2).all(|w| ((w[1].0 - w[0].0).abs() - 10.0).abs() < 0.1), "{points:?}");
    }

    #[cfg(feature = "tsne")]
    #[test]
    fn tsne_keeps_groups_together_and_draws_the_same_picture_on_any_pool() {
        // Three groups in 20 dimensions.
        let mut random = crate::data::random::RowRandom::new(1, "test", "groups");
        let vectors: Vec<Vec<f32>> = (0..60)
            .map(|i| {
                (0..20).map(|c| (6.0 * f64::from(u8::from(c == i % 3)) + random.uniform()) as f32).collect()
            })
            .collect();
        let draw = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| project(&vectors, Projection::Tsne)).unwrap()
        };
        let plane = draw(1);
        assert_eq!(plane, draw(4));
        let distance = |i: usize, j: usize| {
            let (a, b) = (plane.points[i], plane.points[j]);
            (a.0 - b.0).hypot(a.1 - b.1)
        };
        for i in 0..60 {
            let nearest =
                (0..60).filter(|&j| j != i).min_by(|&a, &b| distance(i, a).total_cmp(&distance(i, b)));
            assert_eq!(nearest.unwrap() % 3, i % 3, "{:?}", plane.points);
        }
        assert!(project(&vectors[..3], Projection::Tsne).unwrap_err().to_string().contains("4 vectors"));
        assert!(project(&vectors[..4], Projection::Tsne).unwrap().points.iter().all(|p| p.0.is_finite()));
        let equal = vec![vec![1.0f32; 5]; 8];
        assert!(
            project(&equal, Projection::Tsne)
                .unwrap()
                .points
                .iter()
                .all(|p| p.0.is_finite() && p.1.is_finite())
        );
    }
}
