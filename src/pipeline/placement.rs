//! `--dtype` and `--device`: how a model's weights are held, and where it computes.
use std::fmt;

use anyhow::Result;

use crate::{device::DeviceChoice, tensor::DType};

/// What every command that computes takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::Args)]
pub struct Placement {
    /// Data type of the weights in memory: f32 or bf16
    #[arg(long, default_value = "f32", value_parser = parse_dtype)]
    pub dtype: DType,
    /// Device to run on: cpu, cuda, cuda:N, or emulated (the CUDA kernels on the processor, to check them)
    #[arg(long, default_value = "cpu", value_parser = str::parse::<DeviceChoice>)]
    pub device: DeviceChoice,
}

impl Default for Placement {
    /// F32 on the CPU.
    fn default() -> Placement {
        Placement { dtype: DType::F32, device: DeviceChoice::Cpu }
    }
}

impl fmt::Display for Placement {
    /// As manifests keep it: another type or another kind of device gives another result, another device of the kind does not.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}", self.dtype.suffix())?;
        match self.device {
            DeviceChoice::Cpu => Ok(()),
            DeviceChoice::Cuda(_) => write!(f, ", cuda"),
            DeviceChoice::Emulated => write!(f, ", emulated"),
        }
    }
}

/// `f32` or `bf16`.
pub fn parse_dtype(s: &str) -> Result<DType, String> {
    match s {
        "f32" => Ok(DType::F32),
        "bf16" => Ok(DType::Bf16),
        other => Err(format!("`{other}` is neither f32 nor bf16")),
    }
}
