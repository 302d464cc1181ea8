//! Alignment in the middle of a model beside its task (Liu and Niehues 2025, arXiv 2502.14830): sentences are drawn to their translations, and away from the others of a step, by a contrastive loss of
//! their mean hidden states behind one layer.
//!
//! With s_i and t_i the means of a sentence and of its translation, both over all tokens of it, and B pairs a step, the loss is
//! -(1/B) Σ_i ln( exp(cos(s_i, t_i) / τ) / Σ_j exp(cos(s_i, t_j) / τ) ): one direction, whose gradient goes through both sides, as the authors' code has it.
use std::cell::RefCell;

use anyhow::{Result, ensure};
use tracing::info_span;

use crate::{
    data::{loader::first_fit, random::RowRandom},
    models::transformer::{
        train_step::{PackedBatch, TrainStep},
        weights::Transformer,
    },
};

/// Below it a vector has no direction (PyTorch's `cosine_similarity`).
const SHORTEST: f64 = 1e-8;

/// Parallel sentences to align, and how.
#[derive(Clone, Debug)]
pub struct MiddleLayer {
    /// Tokens of each sentence and of its translation.
    pub pairs: Vec<[Vec<u32>; 2]>,
    /// Layers below the states that are aligned; 1 to the model's.
    pub layer: usize,
    /// τ.
    pub temperature: f64,
    /// What the loss counts beside the task's, which is a mean over the step's tokens or sentences.
    pub weight: f64,
    /// Pairs of a step.
    pub batch: usize,
    order: RefCell<(usize, Vec<usize>)>,
}

/// The loss of a step's pairs, not yet multiplied with its weight, and how well they are found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Contrast {
    /// Nats a pair.
    pub loss: f64,
    /// Share of the sentences whose translation is the nearest of the step's by cosine, the first of equals.
    pub retrieved: f64,
    /// Of the loss, by each number of the means.
    pub gradient: Vec<f32>,
}

impl Contrast {
    /// Of `means` (2 B, `width`): B sentences, then their translations.
    pub fn of(means: &[f32], width: usize, temperature: f64) -> Contrast {
        let rows: Vec<(Vec<f64>, f64)> = means.chunks_exact(width).map(direction).collect();
        let (sources, targets) = rows.split_at(rows.len() / 2);
        let pairs = sources.len();
        let mut found = Contrast { gradient: vec![0.0; means.len()], ..Contrast::default() };
        let mut toward = vec![vec![0.0; width]; rows.len()];
        for (i, (source, _)) in sources.iter().enumerate() {
            let logits: Vec<f64> = targets.iter().map(|(t, _)| dot(source, t) / temperature).collect();
            let best = (0..pairs).fold(0, |best, j| if logits[j] > logits[best] { j } else { best });
            let sum: f64 = logits.iter().map(|x| (x - logits[best]).exp()).sum();
            found.loss += (logits[best] - logits[i] + sum.ln()) / pairs as f64;
            found.retrieved += f64::from(u8::from(best == i)) / pairs as f64;
            for (j, (target, _)) in targets.iter().enumerate() {
                let share = (logits[j] - logits[best]).exp() / sum - f64::from(u8::from(i == j));
                let slope = share / (pairs as f64 * temperature);
                add(&mut toward[i], slope, target);
                add(&mut toward[pairs + j], slope, source);
            }
        }
        let all = found.gradient.chunks_exact_mut(width).zip(&toward).zip(&rows);
        for ((out, d), (unit, length)) in all {
            // Along itself a vector changes no cosine.
            let along = if *length > SHORTEST { dot(d, unit) } else { 0.0 };
            let each = d.iter().zip(unit).map(|(d, u)| (d - along * u) / length.max(SHORTEST));
            out.iter_mut().zip(each).for_each(|(out, x)| *out = x as f32);
        }
        found
    }
}

/// A vector divided by its length, and that.
fn direction(v: &[f32]) -> (Vec<f64>, f64) {
    let length = v.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    (v.iter().map(|&x| f64::from(x) / length.max(SHORTEST)).collect(), length)
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

fn add(to: &mut [f64], factor: f64, x: &[f64]) {
    to.iter_mut().zip(x).for_each(|(to, x)| *to += factor * x);
}

impl MiddleLayer {
    /// Of pairs as tokens, `batch` of them a step, behind `layer` layers, with the temperature and the weight of the loss.
    ///
    /// # Errors
    /// Fewer pairs than a step takes, or fewer than two a step; a sentence without tokens.
    pub fn new(
        pairs: Vec<[Vec<u32>; 2]>,
        layer: usize,
        batch: usize,
        [temperature, weight]: [f64; 2],
    ) -> Result<MiddleLayer> {
        ensure!(
            (2..=pairs.len()).contains(&batch),
            "{batch} pairs a step, of {}: at least 2, and no more than there are",
            pairs.len()
        );
        ensure!(pairs.iter().flatten().all(|tokens| !tokens.is_empty()), "a sentence has no tokens");
        Ok(MiddleLayer { pairs, layer, temperature, weight, batch, order: RefCell::default() })
    }

    /// Tokens of the longest sentence.
    pub fn longest(&self) -> usize {
        self.pairs.iter().flatten().map(Vec::len).max().unwrap_or(0)
    }

    /// The pairs of step `step` (from 0): a function of it and of the seed. Each pass over the pairs is shuffled anew; what does not fill a step is left to the next pass.
    pub fn of_step(&self, seed: u64, step: u64) -> Vec<usize> {
        let a_pass = self.pairs.len() / self.batch;
        let (pass, within) = (step as usize / a_pass, step as usize % a_pass);
        let mut order = self.order.borrow_mut();
        if order.1.is_empty() || order.0 != pass {
            let mut all: Vec<usize> = (0..self.pairs.len()).collect();
            RowRandom::new(seed, "alignment", &pass.to_string()).shuffle(&mut all);
            *order = (pass, all);
        }
        order.1[within * self.batch..][..self.batch].to_vec()
    }

    /// gradients += `weight` times those of the loss of a step's pairs; what the log says of it. With the adapters' dropout, as the task is learnt.
    ///
    /// # Errors
    /// A loss that is not finite; the model's.
    pub(super) fn step(
        &self,
        model: &Transformer,
        step: &mut TrainStep,
        (seed, done): (u64, u64),
        batch_tokens: usize,
    ) -> Result<Vec<(&'static str, f64)>> {
        let _span = info_span!("alignment").entered();
        let drawn = self.of_step(seed, done);
        // The sources, then their translations.
        let documents: Vec<(u32, &[u32])> = (0..2)
            .flat_map(|side| drawn.iter().map(move |&p| (side, p)))
            .map(|(side, p)| (!(2 * p + side) as u32, &self.pairs[p][side][..]))
            .collect();
        let lengths: Vec<usize> = documents.iter().map(|(_, tokens)| tokens.len()).collect();
        let order = first_fit(&lengths, batch_tokens.max(self.longest()));
        let batch = |of: &Vec<usize>| {
            let mut batch = PackedBatch::default();
            for &(id, tokens) in of.iter().map(|&i| &documents[i]) {
                // Counted from the end, so that dropout draws otherwise than for the documents of the task.
                batch.push_as(id, tokens, &vec![0.0; tokens.len()]);
            }
            batch
        };
        let batches: Vec<PackedBatch> = order.iter().map(batch).collect();
        let width = model.spec.hidden_size;
        let places: Vec<usize> = order.concat();
        let mut found = Contrast::default();
        step.forward_backward_pooled(model, &batches, self.layer, &mut |means| {
            let mut sorted = vec![0.0; means.len()];
            for (own, &place) in means.chunks_exact(width).zip(&places) {
                sorted[place * width..][..width].copy_from_slice(own);
            }
            found = Contrast::of(&sorted, width, self.temperature);
            ensure!(
                found.loss.is_finite(),
                "step {}: the alignment loss is {}: lower the learning rate",
                done + 1,
                found.loss
            );
            let of = |&place: &usize| found.gradient[place * width..][..width].iter();
            Ok(places.iter().flat_map(of).map(|g| (self.weight * f64::from(*g)) as f32).collect())
        })?;
        Ok(vec![("train/alignment_loss", found.loss), ("train/alignment_retrieval", found.retrieved)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn means(pairs: usize, width: usize) -> Vec<f32> {
        let mut random = RowRandom::new(1, "means", "");
        (0..2 * pairs * width).map(|_| (random.uniform() - 0.4) as f32).collect()
    }

    #[test]
    fn the_gradient_is_that_of_the_loss() {
        let (width, temperature) = (5, 0.3);
        let given = means(4, width);
        let found = Contrast::of(&given, width, temperature);
        for i in 0..given.len() {
            let at = |by: f32| {
                let mut moved = given.clone();
                moved[i] += by;
                Contrast::of(&moved, width, temperature).loss
            };
            let slope = (at(1e-3) - at(-1e-3)) / 2e-3;
            assert!((slope - f64::from(found.gradient[i])).abs() < 1e-4, "{i}: {slope} {found:?}");
        }
        assert!(found.gradient.iter().any(|g| g.abs() > 1e-2));
    }

    #[test]
    fn translations_that_are_alike_are_found_and_equal_ones_cost_the_logarithm_of_their_number() {
        let width = 6;
        let half = &means(5, width)[..5 * width];
        let same = Contrast::of(&[half, half].concat(), width, 0.01);
        assert!(same.retrieved == 1.0 && same.loss < 1e-3, "{same:?}");
        let flat = Contrast::of(&vec![1.0; 2 * 8 * width], width, 0.1);
        assert!((flat.loss - 8f64.ln()).abs() < 1e-12 && flat.retrieved == 0.125, "{flat:?}");
        assert!(flat.gradient.iter().all(|g| g.abs() < 1e-6));
        // The second sentence is nearest to the other translation, and both translations to their own sentences.
        let one_way = [1.0, 0.0, 0.985, 0.174, 0.998, 0.07, 0.94, 0.342];
        assert_eq!(Contrast::of(&one_way, 2, 0.1).retrieved, 0.5);
        assert!(Contrast::of(&vec![0.0; 4 * width], width, 0.1).gradient.iter().all(|g| g.is_finite()));
    }

    #[test]
    fn every_pair_comes_once_in_a_pass_whatever_was_asked_before() {
        let pairs: Vec<_> = (0..11u32).map(|i| [vec![i], vec![i, i]]).collect();
        let of = |batch| MiddleLayer::new(pairs.clone(), 1, batch, [0.1, 1.0]);
        let all = of(4).unwrap();
        let steps: Vec<Vec<usize>> = (0..6).map(|step| all.of_step(7, step)).collect();
        for pass in steps.chunks(2) {
            let mut seen = pass.concat();
            seen.sort();
            seen.dedup();
            assert_eq!(seen.len(), 8);
        }
        assert!(steps[0] != steps[2] && steps[0] != all.of_step(8, 0));
        let other = of(4).unwrap();
        assert_eq!((other.of_step(7, 5), other.of_step(7, 1)), (steps[5].clone(), steps[1].clone()));
        assert_eq!(all.longest(), 2);
        assert!(of(1).is_err() && of(12).is_err());
        assert!(MiddleLayer::new(vec![[vec![1], vec![]], [vec![1], vec![2]]], 1, 2, [0.1, 1.0]).is_err());
    }
}
