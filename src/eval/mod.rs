//! Evaluation as a library: tasks, their samples, what is measured of them, two models compared.
pub mod alignment;
pub mod compare;
pub mod learned;
pub mod measure;
pub mod run;
pub mod sample;
pub mod samples;
pub mod scores;
pub mod tasks;
