//! Many comparisons and several seeds: corrected p-values, and what the intervals are over.
use super::{Ran, report::headlines};
use crate::{metrics::holm, recipe::ablate::Ablations};

/// Fills in the p-values of all comparisons with the reference arm, corrected for their number (Holm): those of each task's first metric, arms with the training of
/// an earlier one left out.
pub(super) fn correct(ran: &mut [Ran]) {
    let headlines = headlines(ran);
    let tests: Vec<(usize, usize)> = (1..ran.len())
        .filter(|&r| ran[r].same_as.is_none())
        .flat_map(|r| headlines.iter().map(move |&i| (r, i)))
        .filter(|&(r, i)| ran[r].to_reference.get(i).is_some_and(|c| !c.paired.p.is_nan()))
        .collect();
    let own: Vec<f64> = tests.iter().map(|&(r, i)| ran[r].to_reference[i].paired.p).collect();
    ran.iter_mut().for_each(|r| r.holm = vec![None; r.to_reference.len()]);
    for ((r, i), p) in tests.into_iter().zip(holm::adjusted(&own)) {
        ran[r].holm[i] = Some(p);
    }
}

/// What intervals and corrected p-values are over, and what is left of the comparisons with the reference after the correction.
pub(super) fn about_intervals(matrix: &Ablations, ran: &[Ran], reference: &Ran) -> String {
    let over = match matrix.seeds.len() {
        0 | 1 => "for one training seed each; they leave out what another seed would change".to_string(),
        n => format!(
            "and over {n} training seeds, both drawn with replacement; so few seeds make them rather too narrow"
        ),
    };
    let tested: Vec<(&Ran, usize, f64)> = ran
        .iter()
        .flat_map(|r| r.holm.iter().enumerate().filter_map(move |(i, p)| Some((r, i, (*p)?))))
        .collect();
    let left: Vec<String> = tested
        .iter()
        .filter(|(_, _, p)| *p < 0.05)
        .map(|(r, i, p)| format!("{} on {} (p {p:.3})", r.arm.title(), r.to_reference[*i].task))
        .collect();
    let left = if left.is_empty() { "none".into() } else { left.join("; ") };
    let (n, full) = (tested.len(), reference.arm.title());
    format!(
        "Intervals are over the test rows (paired bootstrap, {} resamples) {over}. Each is for itself: of {n} comparisons with {full}, about {:.0} would exclude zero \
         by chance alone. Corrected for their number (Holm), so that a single false one is as rare as 5 %, there remain: {left}.",
        reference.arm.recipe.eval.bootstrap_samples,
        n as f64 * 0.05
    )
}
