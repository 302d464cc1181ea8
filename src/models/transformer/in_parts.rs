//! A frozen model whose layers' matrices are in parts, one on each rank that trains adapters for it; norms, biases, embedding and head are whole everywhere.
use std::{ops::Range, rc::Rc};

use anyhow::{Context, Result, ensure};

use super::{
    tree::{Leaf, LeafPart, Place, Tree},
    weight::Weight,
    weights::Transformer,
};
use crate::{
    device::Device,
    distributed::{layers::Layers, team::Team},
    error::Error,
    tensor::{ALIGN, Tensor},
};

/// Whether it is a matrix of a layer.
pub(super) fn in_layer(leaf: &Leaf) -> bool {
    matches!(leaf.place, Place::Weight(..))
}

/// A matrix's place in its layer.
struct Laid<'a> {
    layer: usize,
    offset: usize,
    tensor: &'a Tensor,
}

impl Transformer {
    /// A copy on `device` that has this rank's part of each layer's matrices.
    ///
    /// # Errors
    /// Matrices that are kept as blocks, experts; too little memory.
    pub fn in_parts(&self, device: &Device, team: &Rc<Team>) -> Result<Transformer> {
        let experts = "shard weights gathers whole layers, of which a token uses few experts: leave it out for models with experts";
        ensure!(self.spec.experts.is_none(), Error::setting("train.shard", experts));
        let laid = self.laid()?;
        let end = |m: &Laid| m.offset + m.tensor.bytes();
        let longest = laid.iter().map(end).max().unwrap_or(0);
        let mut read = |layer: usize, range: Range<usize>| {
            let mut bytes = vec![0; range.len()];
            for m in laid.iter().filter(|m| m.layer == layer) {
                let (from, to) = (m.offset.max(range.start), end(m).min(range.end));
                if from < to {
                    let own = &m.tensor.host_bytes()?[from - m.offset..to - m.offset];
                    bytes[from - range.start..to - range.start].copy_from_slice(own);
                }
            }
            Ok(bytes)
        };
        let layers = Layers::new(team, device, (self.spec.layers.len(), longest), &mut read)?;
        let mut laid = laid.iter();
        let weights = Tree::build(&self.spec, &mut |leaf| {
            let part = self.weights.get(leaf.place);
            Ok(match part.with_context(|| format!("the model has no {}", leaf.name))? {
                LeafPart::Vector(t) => LeafPart::Vector(t.to_device(device)?),
                LeafPart::Matrix(_) if in_layer(leaf) => {
                    let m = laid.next().with_context(|| format!("{} has no place", leaf.name))?;
                    let (place, t) = (layers.place(m.layer), m.tensor);
                    LeafPart::Matrix(Weight::Dense(place.cut(t.name(), m.offset, t.dtype(), t.shape())?))
                }
                LeafPart::Matrix(w) => LeafPart::Matrix(w.dense("shard weights")?.to_device(device)?.into()),
            })
        })?;
        let (config, spec) = (self.config.clone(), self.spec.clone());
        Ok(Transformer { config, spec, compute: self.compute, weights, layers: Some(layers) })
    }

    /// The layers' matrices, each layer's one behind the other, in the order of the leaves.
    fn laid(&self) -> Result<Vec<Laid<'_>>> {
        let mut ends = vec![0; self.spec.layers.len()];
        let mut all = vec![];
        for (leaf, part) in self.weights.leaves(&self.spec) {
            let (Place::Weight(layer, _), LeafPart::Matrix(w)) = (leaf.place, part) else { continue };
            let tensor = w.dense("shard weights")?;
            all.push(Laid { layer, offset: ends[layer], tensor });
            ends[layer] += tensor.bytes().next_multiple_of(ALIGN);
        }
        Ok(all)
    }

    /// Whether other ranks have the rest of the weights.
    pub fn is_in_parts(&self) -> bool {
        self.layers.is_some()
    }

    /// An error of what needs all weights at once.
    pub(super) fn needs_all(&self, what: &str) -> Result<()> {
        let message =
            || format!("{what} needs all weights, of which this rank has a part: leave shard weights out");
        ensure!(!self.is_in_parts(), Error::setting("train.shard", message()));
        Ok(())
    }

    /// What is asked for from here on finds the weights of layer `l`; those of `next` come meanwhile.
    pub(super) fn need(&self, l: usize, next: Option<usize>) -> Result<()> {
        self.layers.as_ref().map_or(Ok(()), |layers| layers.need(l, next))
    }

    /// A pass through the layers has been asked for.
    pub(super) fn end_of_pass(&self) -> Result<()> {
        self.layers.as_ref().map_or(Ok(()), Layers::end_of_pass)
    }
}
