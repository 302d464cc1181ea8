//! The kernels' launch functions, one a kernel (or one for all its element types), which the build makes from the `KERNEL` signatures of
//! `kernels/*.cu` (`build/bindings`), and a function for each `EXPORT_CONSTANT`.
//!
//! By the parameter's type in C: `T*` is `&mut Tensor`, `const T*` is `&Tensor`, an `OPTIONAL` one an `Option` of it. `float`, `bf16` and integers
//! insist on that element type; `void` takes any; a struct, `double` and bytes are words of a U32 tensor. `int` is a `usize` that must fit it,
//! `unsigned`, `unsigned long long` and `float` are `u32`, `u64` and `f32`; a tensor map is a [`TileMap`]. Threads and shared memory are the source's. A function that no op
//! calls is a warning of the compiler, like any dead code.
#![allow(unsafe_code)]
use anyhow::Result;

use super::launch::{Binding, Grid, TileMap, Value, Variant};
use crate::{
    device::Gpu,
    tensor::{DType, Tensor},
};

include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
