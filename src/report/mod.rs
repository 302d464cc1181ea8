//! What people look at: tables on the terminal, the HTML report and its plots, traces.
mod axes;
pub mod environment;
pub mod escape;
pub mod html;
pub mod intervals;
pub mod out;
pub mod plots;
pub mod progress;
pub mod table;
pub mod trace;
