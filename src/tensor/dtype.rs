//! Element types, and what products read.
use serde::{Deserialize, Serialize};

/// Element types that tensors hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum DType {
    /// IEEE binary32.
    F32,
    /// bfloat16: binary32 without its lower 16 bits.
    Bf16,
    /// Unsigned 32-bit: token ids, positions, offsets.
    U32,
}

impl DType {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        if self == DType::Bf16 { 2 } else { 4 }
    }
    /// The suffix of a kernel's name: `rmsnorm_forward_bf16`.
    pub fn suffix(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::Bf16 => "bf16",
            DType::U32 => "u32",
        }
    }
}

/// What products over blocks read of their input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activations {
    /// The values: the bits of products over what the blocks unpack to.
    #[default]
    F32,
    /// Integers of 8 bits, on the CPU: faster for few rows, and not the same numbers.
    Int8,
}
