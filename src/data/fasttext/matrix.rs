//! fastText's matrices in a mapped file: 32-bit floats, or codes of a product quantiser (Jégou et al. 2011).
use std::ops::Range;

use anyhow::{Result, ensure};

use super::Cursor;

/// Centroids of each part of a row.
const CENTROIDS: usize = 256;

/// A matrix where it lies in the file.
pub(super) enum Matrix {
    /// Rows of floats that begin at this byte.
    Dense { at: usize, columns: usize },
    /// Codes of rows, and of their norms.
    Quantised { codes: Range<usize>, parts: Parts, norms: Option<(Range<usize>, Parts)> },
}

/// A product quantiser.
pub(super) struct Parts {
    parts: usize,
    width: usize,
    last_width: usize,
    centroids: Vec<f32>,
}

impl Parts {
    fn read(c: &mut Cursor, columns: usize) -> Result<Parts> {
        let (dim, parts, width, last_width) = (c.i32()?, c.i32()?, c.i32()?, c.i32()?);
        let sound = parts > 0 && (1..=width).contains(&last_width) && dim as usize == columns;
        let whole = (parts as i64 - 1) * width as i64 + last_width as i64;
        ensure!(
            sound && whole == dim as i64,
            "a quantiser of {parts} parts of {width} and {last_width} for {columns} columns"
        );
        let bytes = c.take(columns * CENTROIDS * 4)?;
        let centroids = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        Ok(Parts { parts: parts as usize, width: width as usize, last_width: last_width as usize, centroids })
    }

    /// The centroid of part `part` with number `code`.
    fn centroid(&self, part: usize, code: u8) -> &[f32] {
        let width = if part + 1 == self.parts { self.last_width } else { self.width };
        let at = part * CENTROIDS * self.width + code as usize * width;
        &self.centroids[at..at + width]
    }

    /// Calls `f` with the first column and the values of each part.
    fn each(&self, codes: &[u8], f: &mut dyn FnMut(usize, &[f32])) {
        for (part, code) in codes.iter().enumerate() {
            f(part * self.width, self.centroid(part, *code));
        }
    }
}

impl Matrix {
    /// Reads where a matrix lies, which must be of `shape` (rows, columns).
    pub(super) fn read(c: &mut Cursor, quantised: bool, name: &str, shape: (usize, usize)) -> Result<Matrix> {
        let with_norms = quantised && c.flag()?;
        let found = (c.i64()?, c.i64()?);
        ensure!(
            found == (shape.0 as i64, shape.1 as i64),
            "the {name} matrix is of {} x {}, {} x {} were expected",
            found.0,
            found.1,
            shape.0,
            shape.1
        );
        if !quantised {
            let at = c.at;
            let rows = c.count("rows", found.0, shape.1 * 4)?;
            c.take(rows * shape.1 * 4)?;
            return Ok(Matrix::Dense { at, columns: shape.1 });
        }
        let size = c.i32()?;
        let size = c.count("codes", size as i64, 1)?;
        let codes = c.at..c.at + size;
        c.take(size)?;
        let parts = Parts::read(c, shape.1)?;
        ensure!(size == shape.0 * parts.parts, "the {name} matrix has {size} codes for {} rows", shape.0);
        let norms = if with_norms {
            let at = c.at;
            c.take(shape.0)?;
            Some((at..at + shape.0, Parts::read(c, 1)?))
        } else {
            None
        };
        Ok(Matrix::Quantised { codes, parts, norms })
    }

    /// Calls `f` with the first column and the values of each part of a row, and the factor of the row.
    fn row(&self, file: &[u8], row: usize, f: &mut dyn FnMut(usize, &[f32])) -> f32 {
        match self {
            Matrix::Dense { at, columns } => {
                let bytes = &file[at + row * columns * 4..at + (row + 1) * columns * 4];
                let value = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                bytes.chunks_exact(4).enumerate().for_each(|(i, b)| f(i, &[value(b)]));
                1.0
            }
            Matrix::Quantised { codes, parts, norms } => {
                let codes = &file[codes.clone()];
                parts.each(&codes[row * parts.parts..(row + 1) * parts.parts], f);
                norms.as_ref().map_or(1.0, |(codes, norms)| norms.centroid(0, file[codes.start + row])[0])
            }
        }
    }

    /// Adds a row to `to`.
    pub(super) fn add(&self, file: &[u8], row: usize, to: &mut [f32]) {
        let norm = self.row(file, row, &mut |_, _| {});
        self.row(file, row, &mut |at, values| {
            to[at..].iter_mut().zip(values).for_each(|(x, v)| *x += norm * v);
        });
    }

    /// The product of a row and `x`.
    pub(super) fn dot(&self, file: &[u8], row: usize, x: &[f32]) -> f32 {
        let mut sum = 0.0;
        let norm = self.row(file, row, &mut |at, values| {
            sum += x[at..].iter().zip(values).map(|(x, v)| x * v).sum::<f32>();
        });
        norm * sum
    }
}
