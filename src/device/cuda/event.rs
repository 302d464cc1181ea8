//! Marks in a stream: times between them, and order among streams.
use anyhow::Result;
use cudarc::driver::{result, sys};

use super::{super::driver::Stream, explain};

/// A mark, destroyed on drop; the driver keeps what it stands for until that has happened.
pub(in crate::device) struct Event(sys::CUevent);

impl Event {
    /// With a context bound to this thread.
    pub(super) fn new(flags: sys::CUevent_flags) -> Result<Event> {
        result::event::create(flags).map(Event).map_err(|e| explain("create an event", e))
    }

    /// Stands behind what `stream` holds by now.
    pub(super) fn record(&self, stream: Stream) -> Result<()> {
        // SAFETY: a live event, a stream of this device.
        unsafe { result::event::record(self.0, stream.handle()) }.map_err(|e| explain("record an event", e))
    }

    /// What is put into `stream` from here on waits for the mark.
    pub(super) fn before(&self, stream: Stream) -> Result<()> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: a live event that was recorded, a stream of this device.
        unsafe { result::stream::wait_event(stream.handle(), self.0, flags) }
            .map_err(|e| explain("wait for an event", e))
    }

    /// Seconds between two marks that were recorded and have happened.
    pub(super) fn seconds_to(&self, end: &Event) -> Result<f64> {
        // SAFETY: live events.
        let ms =
            unsafe { result::event::elapsed(self.0, end.0) }.map_err(|e| explain("read the events", e))?;
        Ok(ms as f64 / 1e3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: created by `new`, destroyed once. A failure is of no interest.
        let _ = unsafe { result::event::destroy(self.0) };
    }
}
