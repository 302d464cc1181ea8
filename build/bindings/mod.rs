//! Rust launch functions from the kernels' own signatures, so that no list of parameters is written twice.
//!
//! [`parse`] reads a kernel file that went through the C preprocessor with `SDRRL_SIGNATURES` defined (`kernels/include/prelude.cuh` says what its
//! macros leave behind); [`generate`] writes the functions. Both are pure functions of text; what they do not understand is an error with file and line.

use std::fmt;

mod read;
mod write;

pub use read::parse;
pub use write::generate;

/// What is wrong with a kernel's declaration, and where.
#[derive(Debug, PartialEq)]
pub struct Error {
    /// As the preprocessor names it.
    pub file: String,
    /// From 1.
    pub line: usize,
    /// In words.
    pub what: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.what)
    }
}

/// Where a declaration stands.
#[derive(Clone, Debug, PartialEq)]
struct Place {
    file: String,
    line: usize,
}

impl Place {
    fn error<T>(&self, what: String) -> Result<T, Error> {
        Err(Error { file: self.file.clone(), line: self.line, what })
    }
}

/// What a pointer points at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Element {
    F32,
    Bf16,
    /// 32-bit integers, or anything that is laid out in 32-bit words: a struct, ggml's blocks, f64.
    Words,
    /// `void`: the kernel is told the type by another parameter, or does not care.
    Any,
}

/// What crosses the launch.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Pointer {
        element: Element,
        written: bool,
        optional: bool,
    },
    /// `int`: a count or flags, never negative.
    Int,
    U32,
    U64,
    F32,
    /// A tensor map.
    Map,
}

#[derive(Clone, Debug, PartialEq)]
struct Parameter {
    name: String,
    kind: Kind,
}

/// A `KERNEL`.
#[derive(Clone, Debug)]
struct Kernel {
    place: Place,
    name: String,
    parameters: Vec<Parameter>,
    /// True if the source says how much dynamic shared memory it has.
    shared: bool,
    /// True if the source says what a block takes.
    tiled: bool,
}

/// What one kernel file declares.
#[derive(Debug)]
pub struct Source {
    /// `rmsnorm` or `sm90/gemm`.
    unit: String,
    kernels: Vec<Kernel>,
    /// Each `EXPORT_CONSTANT`.
    constants: Vec<(Place, String)>,
}

#[cfg(test)]
mod tests;
