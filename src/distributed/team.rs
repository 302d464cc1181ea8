//! What ranks that train one model exchange. A process that trains alone is a team of one, whose every exchange is with itself.
use std::{cell::RefCell, sync::Arc};

use anyhow::{Context, Result, ensure};

use super::{control::Control, frames::Doing, lobby::Met, ranks::Ranks, world::World};
use crate::{
    device::{
        Device, Mark,
        nccl::{Communicator, ID_BYTES, Nccl},
    },
    error::Error,
    ops::collective,
    tensor::{DType, Tensor},
};

/// Elements of a call that gathers gradients: 16 MiB, so that a call is long beside its latency and a gather of one a rank is small beside a model.
pub const BUCKET: usize = 4 << 20;

/// The processes that train one model, seen from one of them.
#[derive(Default)]
pub struct Team {
    world: World,
    joined: Option<Joined>,
}

struct Joined {
    control: Control,
    id: [u8; ID_BYTES],
    /// From [`Team::connect`] to [`Team::disconnect`].
    exchange: RefCell<Option<Exchange>>,
}

#[derive(Clone)]
struct Exchange {
    communicator: Arc<Communicator>,
    device: Device,
}

impl Team {
    /// Ranks that have met; from here on each is watched.
    pub fn begin(ranks: &Ranks, met: Met) -> Result<Team> {
        let (world, id) = (ranks.world, met.id);
        let control = Control::begin(world, met)?;
        Ok(Team { world, joined: Some(Joined { control, id, exchange: RefCell::default() }) })
    }

    /// One rank without the others, whose every exchange is with itself: for measuring what it holds.
    pub fn without_others(world: World) -> Team {
        Team { world, joined: None }
    }

    /// Makes the communicator, on the GPU that the model is on; all ranks call it.
    ///
    /// # Errors
    /// A device that is no GPU; NCCL's.
    pub fn connect(&self, device: &Device, nccl: &Arc<Nccl>) -> Result<()> {
        let Some(joined) = &self.joined else { return Ok(()) };
        // Makes it the current one of this thread.
        device.gpu().context("ranks train on GPUs")?.synchronize()?;
        joined.control.does(Doing::Waiting);
        let made = Communicator::new(nccl.clone(), self.world.rank(), self.world.size(), &joined.id);
        joined.control.does(Doing::Computing);
        let communicator = Arc::new(made?);
        joined.control.uses(Some(communicator.clone()));
        *joined.exchange.borrow_mut() = Some(Exchange { communicator, device: device.clone() });
        Ok(())
    }

    /// Ends the communicator; all ranks call it, since some wait for the others.
    pub fn disconnect(&self) {
        let Some(joined) = &self.joined else { return };
        joined.control.uses(None);
        joined.exchange.borrow_mut().take();
    }

    /// What exchanges go through; nothing for one alone.
    fn exchange(&self) -> Result<Option<(&Control, Exchange)>> {
        let Some(joined) = &self.joined else { return Ok(None) };
        let exchange = joined.exchange.borrow().clone();
        Ok(Some((&joined.control, exchange.context("the ranks are not connected")?)))
    }

    /// Which of how many.
    pub fn world(&self) -> World {
        self.world
    }

    /// True for the one that writes files and speaks.
    pub fn is_first(&self) -> bool {
        self.world.rank() == 0
    }

    /// A rank in messages; nothing of one alone.
    pub fn named(&self, rank: usize) -> String {
        let host = self.joined.as_ref().and_then(|j| j.control.hosts().get(rank));
        host.map_or(String::new(), |host| format!(" on rank {rank} ({host})"))
    }

    /// How many steps are done, for messages of others about this rank.
    pub fn at_step(&self, step: u64) {
        self.joined.iter().for_each(|j| j.control.step(step));
    }

    /// Does what the others wait for, however long it takes.
    pub fn alone<T>(&self, work: impl FnOnce() -> T) -> T {
        self.joined.iter().for_each(|j| j.control.does(Doing::Alone));
        let done = work();
        self.joined.iter().for_each(|j| j.control.does(Doing::Computing));
        done
    }

    /// The end of this rank's part. After an error all others end, too, and it is said once: this may not return.
    pub fn ended<T>(&self, done: Result<T>) -> Result<T> {
        let Some(Joined { control, .. }) = &self.joined else { return done };
        match done {
            Err(e) if !e.chain().any(|e| matches!(e.downcast_ref(), Some(Error::Interrupted { .. }))) => {
                Err(control.failed(e))
            }
            done => {
                control.done();
                done
            }
        }
    }

    /// Each of `parts` (F32 or Bf16) becomes its sum over all ranks, or over all for its owner alone, until [`Team::finish`], beside whatever is computed meanwhile.
    pub fn start_sums(&self, parts: &mut [(Tensor, Option<usize>)]) -> Result<()> {
        let Some((control, own)) = self.exchange()? else { return Ok(()) };
        waiting(control, || collective::start_sums(&own.communicator, parts))
    }

    /// whole = the `part`s of all ranks, in their order, beside whatever is computed until the mark is waited for ([`crate::device::Gpu`]).
    pub(super) fn start_gather(&self, whole: &mut Tensor, part: &Tensor) -> Result<Option<Mark>> {
        let Some((control, own)) = self.exchange()? else { return Ok(None) };
        waiting(control, || collective::start_gather(&own.communicator, whole, part)).map(Some)
    }

    /// Waits for everything that was computed and exchanged.
    pub fn finish(&self) -> Result<()> {
        let Some((control, own)) = self.exchange()? else { return Ok(()) };
        let gpu = own.device.gpu().context("ranks train on GPUs")?;
        waiting(control, || collective::finish(&own.communicator, gpu))
    }

    /// Each of `parts` becomes that of its rank.
    pub fn hand_out(&self, parts: &mut [(Tensor, usize)]) -> Result<()> {
        let Some((control, own)) = self.exchange()? else { return Ok(()) };
        waiting(control, || collective::broadcast(&own.communicator, parts))
    }

    /// Waits until all ranks have come here.
    pub fn wait_for_all(&self) -> Result<()> {
        self.gather_words(&[0]).map(drop)
    }

    /// `t` of every rank, in their order.
    pub fn all_gather(&self, t: &Tensor) -> Result<Vec<Tensor>> {
        let Some((control, own)) = self.exchange()? else { return Ok(vec![t.alias()]) };
        let (n, size) = (t.len(), self.world.size());
        let mut all = Tensor::scratch_on(&own.device, "gathered", t.dtype(), &[size, n])?;
        waiting(control, || collective::all_gather(&own.communicator, &mut all, t))?;
        (0..size).map(|r| all.rows(r..r + 1)?.view(&[n])).collect()
    }

    /// `t` becomes that of rank 0.
    pub fn broadcast(&self, t: &mut Tensor) -> Result<()> {
        self.hand_out(&mut [(t.alias(), 0)])
    }

    /// Words of every rank, as many of each, in their order.
    fn gather_words(&self, words: &[u32]) -> Result<Vec<Vec<u32>>> {
        let Some((_, own)) = self.exchange()? else { return Ok(vec![words.to_vec()]) };
        let mut numbers = Tensor::scratch_on(&own.device, "numbers", DType::U32, &[words.len()])?;
        numbers.write_u32(words)?;
        self.all_gather(&numbers)?.iter().map(Tensor::to_u32_vec).collect()
    }

    /// Numbers of every rank, as many of each, in their order; not a bit of them changes.
    pub fn gather(&self, numbers: &[f64]) -> Result<Vec<Vec<f64>>> {
        let words: Vec<u32> = bytemuck::cast_slice::<f64, u32>(numbers).to_vec();
        let doubles = |words: Vec<u32>| {
            words.chunks_exact(2).map(|w| f64::from_bits(w[0] as u64 | (w[1] as u64) << 32)).collect()
        };
        Ok(self.gather_words(&words)?.into_iter().map(doubles).collect())
    }

    /// Whether it is so on any rank.
    pub fn any(&self, here: bool) -> Result<bool> {
        Ok(self.gather_words(&[here as u32])?.iter().any(|w| w[0] != 0))
    }

    /// What rank 0 computes, on every rank: nobody else does.
    pub fn from_first(&self, compute: impl FnOnce() -> Result<f64>) -> Result<f64> {
        let own = if self.is_first() { self.alone(compute)? } else { 0.0 };
        Ok(self.gather(&[own])?[0][0])
    }

    /// The text of rank 0.
    pub fn text_of_first(&self, text: String) -> Result<String> {
        let mut bytes = text.into_bytes();
        let n = bytes.len();
        bytes.resize(n.next_multiple_of(4), 0);
        let words = [n as u32].into_iter().chain(bytemuck::pod_collect_to_vec::<u8, u32>(&bytes)).collect();
        let words = self.words_of_first(words)?;
        let (n, words) = words.split_first().context("a text of rank 0")?;
        let bytes = bytemuck::cast_slice::<u32, u8>(words).get(..*n as usize).context("a text of rank 0")?;
        String::from_utf8(bytes.to_vec()).context("a text of rank 0")
    }

    /// The words of rank 0, on every rank: what the others bring does not matter.
    pub fn words_of_first(&self, words: Vec<u32>) -> Result<Vec<u32>> {
        let Some((_, own)) = self.exchange()? else { return Ok(words) };
        let n = self.gather_words(&[words.len() as u32])?[0][0] as usize;
        let mut words = if self.is_first() { words } else { vec![] };
        words.resize(n.max(1), 0);
        let mut tensor = Tensor::scratch_on(&own.device, "words", DType::U32, &[words.len()])?;
        tensor.write_u32(&words)?;
        self.broadcast(&mut tensor)?;
        let mut words = tensor.to_u32_vec()?;
        words.truncate(n);
        Ok(words)
    }

    /// Words of every rank, as many as each has, in the order of the ranks.
    pub fn gather_lists(&self, words: &[u32]) -> Result<Vec<Vec<u32>>> {
        let lengths = self.gather_words(&[words.len() as u32])?;
        let longest = lengths.iter().map(|n| n[0] as usize).max().unwrap_or(0);
        let mut padded = words.to_vec();
        padded.resize(longest.max(1), 0);
        let mut all = self.gather_words(&padded)?;
        all.iter_mut().zip(lengths).for_each(|(list, n)| list.truncate(n[0] as usize));
        Ok(all)
    }

    /// A sign of life of long work that the others wait for: it goes on.
    pub fn goes_on(&self) {
        self.joined.iter().for_each(|j| j.control.does(Doing::Computing));
    }

    /// An error if the number is not the same on all ranks: which rank's is not rank 0's.
    pub fn ensure_same(&self, what: &str, number: u64) -> Result<()> {
        let all = self.gather_words(&[number as u32, (number >> 32) as u32])?;
        let other = (0..all.len()).find(|&r| all[r] != all[0]);
        let named = other.map_or(String::new(), |r| self.named(r));
        ensure!(
            other.is_none(),
            "{what} has other bits{named} than on rank 0: the ranks no longer train one model; resume from the last checkpoint, with the same kind of GPU on all ranks"
        );
        Ok(())
    }
}

fn waiting<T>(control: &Control, exchange: impl FnOnce() -> Result<T>) -> Result<T> {
    control.does(Doing::Waiting);
    let done = exchange();
    control.does(Doing::Computing);
    done
}
