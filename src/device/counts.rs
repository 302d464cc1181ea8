//! What was asked of a driver, counted: launches, copies and waits are what a small step's time goes into, and a test holds them to numbers.
use std::{
    fmt,
    ops::Sub,
    sync::atomic::{AtomicU64, Ordering},
};

/// Declares the counters once, as what is counted and as what is read.
macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// Calls of a driver, by kind, since the device was opened.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counts { $($(#[$doc])* pub $name: u64),+ }

        /// The counters themselves.
        #[derive(Default)]
        pub(super) struct Counters { $(pub $name: AtomicU64),+ }

        impl Counters {
            pub(super) fn read(&self) -> Counts {
                Counts { $($name: self.$name.load(Ordering::Relaxed)),+ }
            }
        }

        impl Sub for Counts {
            type Output = Counts;
            /// What came between two readings.
            fn sub(self, before: Counts) -> Counts {
                Counts { $($name: self.$name - before.$name),+ }
            }
        }

        impl fmt::Display for Counts {
            fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
                $(write!(f, "{} {}  ", self.$name, stringify!($name).replace('_', " "))?;)+
                Ok(())
            }
        }
    };
}

counts! {
    /// Kernels started.
    launches,
    /// Ranges set to 0.
    memsets,
    /// Allocations of the driver: of tensors, and of scratch that no idle one served.
    allocations,
    /// Scratch that an op asked for, most of which idle scratch serves.
    scratch,
    /// Copies to the device.
    copies_in,
    /// Copies from the device; the host waits for each.
    copies_out,
    /// Times that the host waited for the device, copies from it included.
    waits,
    /// Tensors described for TMA.
    tensor_maps,
}

pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
