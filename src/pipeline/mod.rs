//! What turns a folder into a finished stage: identity, locks, manifests, the engine of stages that map rows to rows, Ctrl-C.
mod accounts;
mod apart;
pub mod clock;
pub mod hash;
pub mod identity;
pub mod interrupt;
mod left_behind;
pub mod lock;
mod made;
pub mod manifest;
pub mod overlap;
pub mod placement;
pub mod plan;
pub mod provenance;
pub mod results;
pub mod rows;
pub mod stage;
pub mod work_dir;
