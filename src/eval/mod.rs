//! Evaluation as a library: tasks, their samples, what is measured of them, two models compared.
pub mod alignment;
pub mod compare;
pub mod measure;
pub mod run;
pub mod samples;
pub mod tasks;
