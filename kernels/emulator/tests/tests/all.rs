//! One program for all tests, as the project's own: `emulator features::` runs one module. scripts/calibrate.sh runs it on a GPU.
mod arithmetic;
mod faults;
mod faults_on_chip;
mod features;
mod registers;
mod rules;
mod wgmma;
