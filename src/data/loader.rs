//! Which documents an optimizer step trains on, and how they are packed: a pure function of (seed, step), so that a run resumes
//! anywhere. In a shard of preferences a unit of several documents takes the place of each.
use anyhow::{Result, ensure};

use super::{random::RowRandom, token_shard::TokenShard};

/// The documents of one shard in epochs, shuffled anew for each.
pub struct Loader<'a> {
    shard: &'a TokenShard,
    seed: u64,
    /// Documents of a step; the last step of an epoch may have fewer.
    batch_documents: usize,
    epoch: usize,
    order: Vec<usize>,
}

impl<'a> Loader<'a> {
    /// A loader of steps of `batch_documents`, none longer than the `batch_tokens` of a micro-batch.
    pub fn new(
        shard: &'a TokenShard,
        seed: u64,
        batch_documents: usize,
        batch_tokens: usize,
    ) -> Result<Loader<'a>> {
        ensure!(!shard.is_empty(), "{} holds no documents: nothing to train on", shard.path().display());
        ensure!(batch_documents > 0, "batch-documents must be at least 1");
        let longest = (0..shard.units()).max_by_key(|&i| shard.unit_len(i)).unwrap_or(0);
        ensure!(
            shard.unit_len(longest) <= batch_tokens,
            "{}: document {} has {} tokens, more than batch-tokens = {batch_tokens}: raise it, or lower max-length when packing",
            shard.path().display(),
            shard.note(shard.unit(longest).start),
            shard.unit_len(longest)
        );
        let order = epoch_order(shard.units(), seed, 0);
        Ok(Loader { shard, seed, batch_documents, epoch: 0, order })
    }

    /// Optimizer steps of an epoch.
    pub fn steps_per_epoch(&self) -> usize {
        self.shard.units().div_ceil(self.batch_documents)
    }

    /// The documents of step `step` (counted from 0 over all epochs), in order.
    pub fn documents(&mut self, step: usize) -> Vec<usize> {
        let (epoch, within) = (step / self.steps_per_epoch(), step % self.steps_per_epoch());
        if epoch != self.epoch {
            self.epoch = epoch;
            self.order = epoch_order(self.shard.units(), self.seed, epoch);
        }
        let start = within * self.batch_documents;
        self.order[start..(start + self.batch_documents).min(self.order.len())].to_vec()
    }
}

fn epoch_order(n: usize, seed: u64, epoch: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    RowRandom::new(seed, "epoch", &epoch.to_string()).shuffle(&mut order);
    order
}

/// Whole documents, longest first, each into the first micro-batch with room (first-fit decreasing).
pub fn pack(shard: &TokenShard, documents: &[usize], batch_tokens: usize) -> Vec<Vec<usize>> {
    let lengths: Vec<usize> = documents.iter().map(|&d| shard.unit_len(d)).collect();
    let mut batches = first_fit(&lengths, batch_tokens);
    batches.iter_mut().flatten().for_each(|i| *i = documents[*i]);
    batches
}

/// The same of anything that has these lengths: its places in the list.
pub fn first_fit(lengths: &[usize], batch_tokens: usize) -> Vec<Vec<usize>> {
    let mut sorted: Vec<usize> = (0..lengths.len()).collect();
    sorted.sort_by_key(|&i| std::cmp::Reverse(lengths[i]));
    let mut batches: Vec<(usize, Vec<usize>)> = vec![];
    for i in sorted {
        let n = lengths[i];
        match batches.iter_mut().find(|(used, _)| used + n <= batch_tokens) {
            Some((used, batch)) => {
                *used += n;
                batch.push(i);
            }
            None => batches.push((n, vec![i])),
        }
    }
    batches.into_iter().map(|(_, batch)| batch).collect()
}

/// Things (number, length) in batches of at most `batch_tokens`, in order: a batch ends where the next thing has no room.
pub fn in_order(things: impl Iterator<Item = (usize, usize)>, batch_tokens: usize) -> Vec<Vec<usize>> {
    let (mut batches, mut left): (Vec<Vec<usize>>, usize) = (vec![], 0);
    for (thing, length) in things {
        match batches.last_mut().filter(|_| length <= left) {
            Some(batch) => batch.push(thing),
            None => {
                batches.push(vec![thing]);
                left = batch_tokens;
            }
        }
        left = left.saturating_sub(length);
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::token_shard::{Document, write};
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn every_document_comes_once_an_epoch(
            lengths in proptest::collection::vec(1usize..20, 1..40), batch_documents in 1usize..9, extra in 0usize..30,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("t.tokens");
            let documents: Vec<Document> = lengths.iter().enumerate()
                .map(|(i, &n)| Document { tokens: vec![i as u32; n], weights: vec![1.0; n], note: String::new() }).collect();
            write(&path, &documents).unwrap();
            let shard = TokenShard::open(&path).unwrap();
            let budget = 20 + extra;
            let mut loader = Loader::new(&shard, 7, batch_documents, budget).unwrap();
            for epoch in 0..3 {
                let mut seen = vec![];
                for step in 0..loader.steps_per_epoch() {
                    let documents = loader.documents(epoch * loader.steps_per_epoch() + step);
                    for batch in pack(&shard, &documents, budget) {
                        prop_assert!(batch.iter().map(|&d| shard.document_len(d)).sum::<usize>() <= budget);
                        seen.extend(batch);
                    }
                }
                seen.sort();
                prop_assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
            }
        }
    }
}
