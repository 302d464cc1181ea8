//! `--dtype`, `--base-dtype`, `--activations` and `--device`: how a model's weights are held, and where it computes.
use std::{fmt, str::FromStr};

use anyhow::{Context, Result, anyhow, ensure};
use clap::{ArgMatches, Command, FromArgMatches};

use crate::{
    device::DeviceChoice,
    error::Error,
    tensor::{Activations, DType},
};

/// How a model's weights are held, and where it computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Data type of the weights in memory.
    pub dtype: DType,
    /// How the base model's matrices are kept.
    pub base_dtype: BaseDtype,
    /// What products over a GGUF file's blocks read of their input.
    pub activations: Activations,
    /// Where it computes.
    pub device: DeviceChoice,
}

/// Options of every command that runs a model.
#[derive(Clone, Copy, Debug, clap::Args)]
struct Options {
    /// Data type of the weights in memory: f32 or bf16; on a GPU f32 takes twice the memory, and its products leave the tensor cores out [default: bf16 with --device cuda, else
    /// f32]
    #[arg(long, value_parser = parse_dtype)]
    dtype: Option<DType>,
    /// How the base model's matrices are kept in memory: dtype (as --dtype says), or stored (the quantised blocks of a .gguf file, or bitsandbytes' NF4: the same results in less
    /// memory, but slower)
    #[arg(long, default_value = "dtype", value_parser = str::parse::<BaseDtype>)]
    base_dtype: BaseDtype,
    /// What products over the blocks of --base-dtype stored read of their input: f32, or int8 (quantised by groups of 32 or 256 values: faster on the CPU, slightly other results)
    #[arg(long, default_value = "f32", value_parser = parse_activations)]
    activations: Activations,
    /// Device to run on: cpu, cuda, cuda:N, several (cuda:0-3 or cuda:0,2-3: generate, translate, score and eval give each a copy of the model and a share of the rows, train
    /// starts a process for each), or emulated (the CUDA kernels on the CPU, for checking them; emulated:0-1 are two)
    #[arg(long, default_value = "cpu", value_parser = str::parse::<DeviceChoice>)]
    device: DeviceChoice,
}

impl From<Options> for Placement {
    fn from(o: Options) -> Placement {
        Placement {
            dtype: o.dtype.unwrap_or_else(|| usual_dtype(o.device)),
            base_dtype: o.base_dtype,
            activations: o.activations,
            device: o.device,
        }
    }
}

impl clap::Args for Placement {
    fn augment_args(command: Command) -> Command {
        Options::augment_args(command)
    }
    fn augment_args_for_update(command: Command) -> Command {
        Options::augment_args_for_update(command)
    }
}

impl FromArgMatches for Placement {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Placement, clap::Error> {
        Options::from_arg_matches(matches).map(Placement::from)
    }
    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Placement::from_arg_matches(matches)?;
        Ok(())
    }
}

/// The type of the weights where none is given: what the device is made for.
fn usual_dtype(device: DeviceChoice) -> DType {
    if device.is_cuda() { DType::Bf16 } else { DType::F32 }
}

impl Default for Placement {
    /// F32 on the CPU.
    fn default() -> Placement {
        Placement {
            dtype: DType::F32,
            base_dtype: BaseDtype::Dtype,
            activations: Activations::F32,
            device: DeviceChoice::Cpu,
        }
    }
}

/// How the matrices of a base model are kept. Results do not depend on it, with activations in f32: products over blocks then have the bits of products
/// over what they unpack to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BaseDtype {
    /// As `dtype` says.
    #[default]
    Dtype,
    /// As they lie in a GGUF file, unpacked by the products that read them.
    Stored,
}

impl FromStr for BaseDtype {
    type Err = String;
    fn from_str(s: &str) -> Result<BaseDtype, String> {
        match s {
            "dtype" => Ok(BaseDtype::Dtype),
            "stored" => Ok(BaseDtype::Stored),
            other => Err(format!(
                "`{other}` is neither dtype (as --dtype says) nor stored (a .gguf file's own blocks)"
            )),
        }
    }
}

impl Placement {
    /// As a recipe has it.
    ///
    /// # Errors
    /// The key whose value is none of its own.
    pub fn named(
        dtype: Option<&str>,
        base_dtype: &str,
        activations: &str,
        device: &str,
    ) -> Result<Placement> {
        let device = device.parse().context("device")?;
        let dtype = dtype.map(parse_dtype).transpose().map_err(|e| anyhow!("dtype: {e}"))?;
        let base_dtype = base_dtype.parse().map_err(|e| anyhow!("base-dtype: {e}"))?;
        let activations = parse_activations(activations).map_err(|e| anyhow!("activations: {e}"))?;
        let dtype = dtype.unwrap_or_else(|| usual_dtype(device));
        let placement = Placement { dtype, base_dtype, activations, device };
        placement.check_activations()?;
        Ok(placement)
    }
    /// True if a GGUF file's blocks are to stay as they are.
    pub fn keeps_blocks(self) -> bool {
        self.base_dtype == BaseDtype::Stored
    }
    /// For a model that is no base model: a translator, a scorer.
    pub fn of_other_models(self) -> Placement {
        Placement { base_dtype: BaseDtype::Dtype, ..self.in_f32() }
    }
    /// For what keeps its activations in f32 whatever the rest does: training.
    pub fn in_f32(self) -> Placement {
        Placement { activations: Activations::F32, ..self }
    }
    /// What products over a GGUF file's blocks read, if those are to stay as they are.
    pub fn blocks(self) -> Option<Activations> {
        self.keeps_blocks().then_some(self.activations)
    }
    /// Refuses activations in int8 where no product reads such.
    pub fn check_activations(self) -> Result<()> {
        let fits = self.keeps_blocks() && self.device == DeviceChoice::Cpu;
        ensure!(
            fits || self.activations == Activations::F32,
            Error::setting(
                "activations",
                "activations in int8 are read by products over the blocks of a .gguf file on the CPU: they go with --base-dtype stored (recipes: base-dtype) and --device cpu"
            )
        );
        Ok(())
    }
    /// Errors if blocks are to be kept, unless `read`: `what` reads none.
    pub fn stored_if(self, read: bool, what: &str) -> Result<()> {
        ensure!(
            read || !self.keeps_blocks(),
            "--base-dtype stored keeps the blocks of a .gguf file; {what} reads none: leave it out"
        );
        self.check_activations()
    }
}

impl fmt::Display for Placement {
    /// As manifests keep it: another type or another kind of device gives another result, another device of the kind, several of them or another way to keep the
    /// same weights does not; activations in int8 do.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}", self.dtype.suffix())?;
        if self.activations == Activations::Int8 {
            write!(f, ", int8 activations")?;
        }
        match self.device {
            DeviceChoice::Cpu => Ok(()),
            device if device.is_cuda() => write!(f, ", cuda"),
            _ => write!(f, ", emulated"),
        }
    }
}

/// `f32` or `int8`.
fn parse_activations(s: &str) -> Result<Activations, String> {
    match s {
        "f32" | "fp32" | "float32" => Ok(Activations::F32),
        "int8" | "i8" => Ok(Activations::Int8),
        other => Err(format!("`{other}` is neither f32 nor int8")),
    }
}

/// `f32` or `bf16`, also by PyTorch's names.
pub fn parse_dtype(s: &str) -> Result<DType, String> {
    match s.strip_prefix("torch.").unwrap_or(s) {
        "f32" | "fp32" | "float32" => Ok(DType::F32),
        "bf16" | "bfloat16" => Ok(DType::Bf16),
        "f16" | "fp16" | "float16" | "half" => Err(format!(
            "`{s}` is no type that is computed in here: bf16 takes as much memory and has the range of f32"
        )),
        other => Err(format!("`{other}` is neither f32 nor bf16")),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        placement: Placement,
    }

    #[test]
    fn a_gpu_computes_in_bf16_unless_told_otherwise() {
        let dtype = |args: &[&str]| {
            let line = Line::try_parse_from([&["sdrrl"], args].concat()).unwrap();
            line.placement.dtype
        };
        assert_eq!(dtype(&[]), DType::F32);
        assert_eq!(dtype(&["--device", "emulated"]), DType::F32);
        assert_eq!(dtype(&["--device", "cuda:1"]), DType::Bf16);
        assert_eq!(dtype(&["--device", "cuda:0-1,3"]), DType::Bf16);
        assert_eq!(dtype(&["--device", "emulated:0-1"]), DType::F32);
        assert!(Line::try_parse_from(["sdrrl", "--device", "cuda:3-0"]).is_err());
        assert_eq!(dtype(&["--device", "cuda", "--dtype", "float32"]), DType::F32);
        assert_eq!(dtype(&["--dtype", "bf16"]), DType::Bf16);
        assert!(Line::try_parse_from(["sdrrl", "--dtype", "fp16"]).is_err());
    }
}
