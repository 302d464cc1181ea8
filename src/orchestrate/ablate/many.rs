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
    let samples = reference.arm.recipe.eval.bootstrap_samples;
    let coarse = too_few(n, samples).map_or(String::new(), |message| format!(" {message}"));
    format!(
        "Intervals are over the test rows (paired bootstrap, {} resamples) {over}. Each is for itself: of {n} comparisons with {full}, about {:.0} would exclude zero \
         by chance alone. Corrected for their number (Holm), so that a single false one is as rare as 5 %, there remain: {left}.{coarse}",
        samples,
        n as f64 * 0.05
    )
}

/// The smallest p-value of `samples` resamples is 1 / (samples + 1): what to say where, corrected for the number of comparisons, even that is none below 5 %.
pub(super) fn too_few(comparisons: usize, samples: usize) -> Option<String> {
    let least = comparisons as f64 / (samples + 1) as f64;
    (least >= 0.05).then(|| {
        format!(
            "With {samples} resamples no corrected p-value of {comparisons} comparisons can be below {:.2}: set eval.bootstrap-samples to {} or more.",
            least.min(1.0),
            comparisons * 20
        )
    })
}

#[test]
fn resamples_too_few_for_the_comparisons_are_told() {
    assert_eq!(too_few(50, 1000), None);
    // 51 / 1001 > 0.05; with 1,020 resamples 51 / 1021 is below.
    let told = too_few(51, 1000).unwrap();
    assert!(told.contains("51 comparisons can be below 0.05: set eval.bootstrap-samples to 1020"), "{told}");
    assert_eq!((too_few(51, 1020), too_few(0, 1)), (None, None));
}
