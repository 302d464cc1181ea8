//! How a step's documents become micro-batches, of one process or of each of several.
use crate::{
    data::{loader::pack, token_shard::TokenShard},
    distributed::world::World,
    models::transformer::train_step::PackedBatch,
};

use super::guard::is_source;

/// The micro-batches of a step that one process of `world` runs.
pub(super) fn step_batches(
    world: World,
    shard: &TokenShard,
    documents: &[usize],
    (batch_tokens, per_sentence): (usize, bool),
    source_weight: f32,
) -> Vec<PackedBatch> {
    pack(shard, &world.share(documents), batch_tokens)
        .iter()
        .map(|documents| packed(shard, documents, per_sentence, source_weight))
        .collect()
}

/// The weight of a whole step: every process adds up all shares in the order of the ranks, so that all divide by the same bits.
pub(super) fn step_weight(
    world: World,
    own: &[PackedBatch],
    others: impl Fn(World) -> Vec<PackedBatch>,
) -> f64 {
    let of =
        |batches: &[PackedBatch]| -> f64 { batches.iter().flat_map(|b| &b.weights).map(|&w| w as f64).sum() };
    world.ranks().map(|rank| if rank == world { of(own) } else { of(&others(rank)) }).sum()
}

/// `source_weight` is the guard's factor on source documents.
pub(super) fn packed(
    shard: &TokenShard,
    documents: &[usize],
    per_sentence: bool,
    source_weight: f32,
) -> PackedBatch {
    let mut batch = PackedBatch::default();
    for &d in documents {
        let mut document = shard.document(d);
        if per_sentence {
            let sum: f32 = document.weights.iter().skip(1).sum();
            if sum > 0.0 {
                document.weights.iter_mut().for_each(|w| *w /= sum);
            }
        }
        if source_weight != 1.0 && is_source(&document.note) {
            document.weights.iter_mut().for_each(|w| *w *= source_weight);
        }
        batch.push_as(d as u32, &document.tokens, &document.weights);
        if is_source(&document.note) {
            batch.mark_source();
        }
    }
    batch
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::token_shard::{Document, write};

    #[test]
    fn ranks_share_a_step_and_divide_by_the_same_weight() {
        let dir = tempfile::tempdir().unwrap();
        let documents: Vec<Document> = (0..11)
            .map(|i| Document {
                tokens: vec![i as u32; 3 + i % 5],
                weights: (0..3 + i % 5).map(|j| 0.1 + (i * j) as f32 / 7.0).collect(),
                note: String::new(),
            })
            .collect();
        write(&dir.path().join("t.tokens"), &documents).unwrap();
        let shard = TokenShard::open(&dir.path().join("t.tokens")).unwrap();
        let order: Vec<usize> = (0..11).map(|i| i * 4 % 11).collect();
        for per_sentence in [false, true] {
            let of = |world| step_batches(world, &shard, &order, (16, per_sentence), 1.0);
            let whole = step_weight(World::default(), &of(World::default()), of);
            for size in 2..5 {
                let (mut tokens, mut weights) = (vec![], vec![]);
                for world in World::new(0, size).unwrap().ranks() {
                    let own = of(world);
                    weights.push(step_weight(world, &own, of).to_bits());
                    tokens.extend(own.into_iter().flat_map(|b| b.tokens));
                }
                tokens.sort();
                let all: Vec<u32> = documents.iter().flat_map(|d| d.tokens.clone()).collect();
                assert_eq!(tokens, all, "every token is one rank's");
                assert!(weights.iter().all(|w| *w == weights[0]), "{size} ranks: {weights:?}");
                assert!((f64::from_bits(weights[0]) / whole - 1.0).abs() < 1e-12);
            }
        }
    }
}
