//! What ranks exchange while they compute: the sums of gradients, each from the moment when it is final on.
use std::{cell::Cell, rc::Rc};

use anyhow::Result;
use tracing::info_span;

use super::team::Team;
use crate::{
    ops::rows::cast,
    tensor::{DType, Tensor},
};

/// Gradients that a backward pass has finished with at one moment, in the order of these moments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Those of the head, unless it is the embedding, and of the last norm.
    Head,
    /// Those of a layer; the last layer comes first.
    Layer(usize),
    /// Those of the embedding.
    Embedding,
}

/// A gradient, or some elements of one.
pub struct Piece {
    /// F32; in one dimension.
    pub gradient: Tensor,
    /// The rank that alone needs the sum; all do where there is none.
    pub owner: Option<usize>,
}

/// What is sent of pieces that lie side by side.
struct Span {
    gradient: Tensor,
    /// Its copy in bf16, where that is sent.
    narrow: Option<Tensor>,
    owner: Option<usize>,
}

/// The sums of a training's gradients over the ranks, by parts. A part's sums begin when its gradients are final in the last micro-batch of a step, beside the rest of the
/// backward pass; every rank begins them in the same order.
pub struct Sums {
    team: Rc<Team>,
    parts: Vec<(Part, Vec<Span>)>,
    /// Parts that have begun; none outside of a step's last micro-batch.
    begun: Cell<Option<usize>>,
}

impl Sums {
    /// Of these gradients, by part and in the order in which parts become final. With `narrow` they are sent, and summed, in bf16.
    ///
    /// # Errors
    /// Too little memory for copies in bf16.
    pub fn new(team: Rc<Team>, parts: Vec<(Part, Vec<Piece>)>, narrow: bool) -> Result<Sums> {
        let copy = |t: &Tensor| Tensor::zeros_on(&t.device(), "gradients in bf16", DType::Bf16, t.shape());
        let span = |Piece { gradient, owner }: Piece| {
            let narrow = narrow.then(|| copy(&gradient)).transpose()?;
            Ok(Span { gradient, narrow, owner })
        };
        let mut all = vec![];
        for (part, pieces) in parts {
            let spans = joined(pieces).into_iter().map(span).collect::<Result<Vec<_>>>()?;
            all.push((part, spans));
        }
        Ok(Sums { team, parts: all, begun: Cell::new(None) })
    }

    /// Bytes of the copies in bf16.
    pub fn bytes(&self) -> usize {
        let spans = self.parts.iter().flat_map(|(_, spans)| spans);
        spans.filter_map(|span| span.narrow.as_ref()).map(Tensor::bytes).sum()
    }

    /// The next backward pass is the step's last: what becomes final in it is summed.
    pub fn last_pass(&self) {
        self.begun.set(Some(0));
    }

    /// The gradients of `part` will not change any more in this pass.
    pub fn is_final(&self, part: Part) -> Result<()> {
        let Some(begun) = self.begun.get() else { return Ok(()) };
        let Some(at) = self.parts.iter().position(|(p, _)| *p == part) else { return Ok(()) };
        (begun..=at).try_for_each(|i| self.begin(i))
    }

    fn begin(&self, i: usize) -> Result<()> {
        let (part, spans) = &self.parts[i];
        let _span = info_span!("sum_gradients", part = format!("{part:?}")).entered();
        self.begun.set(Some(i + 1));
        let mut sent = vec![];
        for Span { gradient, narrow, owner } in spans {
            if let Some(narrow) = narrow {
                cast(&mut narrow.alias(), gradient, 1.0)?;
            }
            sent.push((narrow.as_ref().unwrap_or(gradient).alias(), *owner));
        }
        self.team.start_sums(&mut sent)
    }

    /// Begins what has not begun, and waits for all: the gradients are the sums, as far as this rank needs them.
    pub fn finish(&self) -> Result<()> {
        (self.begun.get().unwrap_or(0)..self.parts.len()).try_for_each(|i| self.begin(i))?;
        self.begun.set(None);
        self.team.finish()?;
        for Span { gradient, narrow, .. } in self.parts.iter().flat_map(|(_, spans)| spans) {
            let Some(narrow) = narrow else { continue };
            cast(&mut gradient.alias(), narrow, 1.0)?;
        }
        Ok(())
    }
}

/// Neighbours of one owner as one piece.
fn joined(pieces: Vec<Piece>) -> Vec<Piece> {
    let mut out: Vec<Piece> = vec![];
    for piece in pieces {
        if let Some(last) = out.last_mut()
            && last.owner == piece.owner
            && let Some(span) = last.gradient.span(&piece.gradient)
        {
            last.gradient = span;
            continue;
        }
        out.push(piece);
    }
    out
}
