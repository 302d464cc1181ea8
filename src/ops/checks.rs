//! Checks that every op makes before it touches memory; the messages print all tensors.
use anyhow::{Result, bail, ensure};

use crate::tensor::Tensor;

/// Errors with the op's name and every tensor (name, dtype, shape) unless `ok`.
pub(crate) fn check(ok: bool, op: &str, tensors: &[&Tensor]) -> Result<()> {
    ensure!(ok, "{op}: shapes or settings do not fit together: {tensors:?}");
    Ok(())
}

/// Errors unless every id is a row of `table`, whose first dimension is `rows`.
pub(crate) fn check_ids(
    op: &str,
    ids: &Tensor,
    values: &[u32],
    rows: usize,
    table: &impl std::fmt::Debug,
) -> Result<()> {
    if let Some(i) = values.iter().position(|&id| id as usize >= rows) {
        bail!("{op}: entry {i} of {ids:?} is {}, but {table:?} has {rows} rows", values[i]);
    }
    Ok(())
}

/// The document offsets in `cu_seqlens`: first 0, never falling, last `n`; errors name the entry that breaks this.
pub(crate) fn check_documents<'a>(op: &str, cu_seqlens: &'a Tensor, n: usize) -> Result<&'a [u32]> {
    let cu = cu_seqlens.u32()?;
    ensure!(
        cu.first() == Some(&0) && cu.last().is_some_and(|&e| e as usize == n),
        "{op}: {cu_seqlens:?} must begin with 0 and end with {n}, the number of rows; it holds {:?}..{:?}",
        cu.first(),
        cu.last()
    );
    if let Some(i) = cu.windows(2).position(|w| w[0] > w[1]) {
        bail!("{op}: {cu_seqlens:?} falls from {} to {} at entry {}", cu[i], cu[i + 1], i + 1);
    }
    Ok(cu)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn document_offsets_are_checked() {
        let cu = |v: &[u32]| Tensor::from_u32("cu_seqlens", &[v.len()], v).unwrap();
        assert_eq!(check_documents("op", &cu(&[0, 2, 2, 5]), 5).unwrap(), [0, 2, 2, 5]);
        for bad in [&[0u32, 4][..], &[1, 5], &[0, 4, 3, 5], &[0]] {
            let e = check_documents("op", &cu(bad), 5).unwrap_err().to_string();
            assert!(e.contains("cu_seqlens"), "{e}");
        }
    }
}
