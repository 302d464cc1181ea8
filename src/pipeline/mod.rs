//! What turns a folder into a finished stage: manifests, the engine of stages that map rows to rows, Ctrl-C.
pub mod interrupt;
pub mod manifest;
pub mod overlap;
pub mod placement;
pub mod rows;
