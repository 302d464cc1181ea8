//! Weights that are not trained, in parts, one on each rank: a layer is gathered before its turn, while the one before it computes (ZeRO, Rajbhandari et al. 2020, stage 3, of a frozen base).
use std::{cell::RefCell, fmt, ops::Range, rc::Rc, sync::Arc};

use anyhow::{Context, Result};
use tracing::info_span;

use super::team::Team;
use crate::{
    device::{Device, Gpu, Mark},
    tensor::{ALIGN, DType, Tensor},
};

/// Layers as long as each other, in parts; two of them are whole at a time.
pub struct Layers {
    team: Rc<Team>,
    gpu: Arc<Gpu>,
    /// By layer: this rank's part, in words.
    parts: Vec<Tensor>,
    /// Where layers of even and of odd numbers become whole.
    places: [Tensor; 2],
    held: RefCell<[Held; 2]>,
}

/// What a place holds, or will when its gathering has ended.
#[derive(Default)]
struct Held {
    layer: Option<usize>,
    ready: Option<Mark>,
}

impl fmt::Debug for Layers {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} layers in parts of {:?}", self.parts.len(), self.places[0])
    }
}

impl Layers {
    /// `layers` of up to `bytes` bytes each; `read` gives bytes of a layer, zeros behind its end.
    ///
    /// # Errors
    /// A device that is no GPU; too little memory; `read`'s.
    pub fn new(
        team: &Rc<Team>,
        device: &Device,
        (layers, bytes): (usize, usize),
        read: &mut dyn FnMut(usize, Range<usize>) -> Result<Vec<u8>>,
    ) -> Result<Layers> {
        let gpu = device.gpu().context("ranks keep weights in parts on GPUs")?.clone();
        let (rank, size) = (team.world().rank(), team.world().size());
        let part = bytes.div_ceil(size).next_multiple_of(ALIGN);
        let word = DType::U32.bytes();
        let new = |name: &str, bytes: usize| Tensor::zeros_on(device, name, DType::U32, &[bytes / word]);
        let mut parts = vec![];
        for layer in 0..layers {
            let mut own = new("a rank's part of a layer", part)?;
            let bytes = read(layer, rank * part..(rank + 1) * part)?;
            own.write_u32(&bytemuck::pod_collect_to_vec(&bytes))?;
            parts.push(own);
        }
        let places = [new("layers of even number", part * size)?, new("layers of odd number", part * size)?];
        Ok(Layers { team: team.clone(), gpu, parts, places, held: RefCell::default() })
    }

    /// Where a layer is when it is whole.
    pub fn place(&self, layer: usize) -> &Tensor {
        &self.places[layer % 2]
    }

    /// Bytes on this rank.
    pub fn bytes(&self) -> usize {
        self.parts.iter().chain(&self.places).map(Tensor::bytes).sum()
    }

    /// What is asked for from here on finds `layer` whole; `next` is gathered meanwhile. All ranks ask for the same layers in the same order.
    ///
    /// # Errors
    /// Of the exchange.
    pub fn need(&self, layer: usize, next: Option<usize>) -> Result<()> {
        self.gather(layer)?;
        if let Some(ready) = &self.held.borrow()[layer % 2].ready {
            self.gpu.after(ready)?;
        }
        // Its place was the layer's before `layer`, all of whose work has been asked for.
        next.map_or(Ok(()), |next| self.gather(next))
    }

    fn gather(&self, layer: usize) -> Result<()> {
        let held = &mut self.held.borrow_mut()[layer % 2];
        if held.layer == Some(layer) {
            return Ok(());
        }
        let _span = info_span!("gather_layer", layer).entered();
        let ready = self.team.start_gather(&mut self.place(layer).alias(), &self.parts[layer])?;
        *held = Held { layer: Some(layer), ready };
        Ok(())
    }

    /// Waits at the end of a pass, so that a rank which the others wait for is known.
    ///
    /// # Errors
    /// Of the pass or of the exchange.
    pub fn end_of_pass(&self) -> Result<()> {
        self.team.finish()
    }
}
