//! Many comparisons at once: Holm's step-down correction (Holm 1979, "A simple sequentially rejective multiple test procedure").

/// The adjusted p-values, in the order of `p`: a hypothesis is rejected at level a, with a chance of any false rejection of at most a whatever the tests have
/// to do with each other, where its adjusted value is below a. The i-th smallest of m becomes the largest of (m - j + 1) p_j over j <= i, at most 1.
/// NaN, a comparison without a test, stays and is not counted.
pub fn adjusted(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).filter(|&i| !p[i].is_nan()).collect();
    order.sort_by(|&a, &b| p[a].total_cmp(&p[b]).then(a.cmp(&b)));
    let (mut out, mut most) = (p.to_vec(), 0.0f64);
    for (rank, &i) in order.iter().enumerate() {
        most = most.max(((order.len() - rank) as f64 * p[i]).min(1.0));
        out[i] = most;
    }
    out
}

#[test]
fn adjusted_values_are_those_of_statsmodels_0_15() {
    for (p, want) in [
        (&[0.01, 0.04, 0.03, 0.005][..], &[0.03, 0.06, 0.06, 0.02][..]),
        (&[0.5, 0.001, 0.001, 0.2, 0.049, 0.9][..], &[1.0, 0.006, 0.006, 0.6, 0.196, 1.0][..]),
    ] {
        let got = adjusted(p);
        assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-12), "{got:?} {want:?}");
    }
    let got = adjusted(&[0.02, f64::NAN, 0.01]);
    assert!(got[0] == 0.02 && got[1].is_nan() && got[2] == 0.02, "{got:?}");
    assert!(adjusted(&[]).is_empty());
}
