//! Where memory lives and work runs.

/// The device that a tensor lives on and an op runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Device {
    /// The host processor: rayon threads, vector instructions chosen at run time.
    #[default]
    Cpu,
}
