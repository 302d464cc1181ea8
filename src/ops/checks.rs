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
    use crate::{
        ops::cross_entropy::LossScratch,
        tensor::{Arena, DType},
    };

    #[test]
    fn document_offsets_are_checked() {
        let cu = |v: &[u32]| Tensor::from_u32("cu_seqlens", &[v.len()], v).unwrap();
        assert_eq!(check_documents("op", &cu(&[0, 2, 2, 5]), 5).unwrap(), [0, 2, 2, 5]);
        for bad in [&[0u32, 4][..], &[1, 5], &[0, 4, 3, 5], &[0]] {
            let e = check_documents("op", &cu(bad), 5).unwrap_err().to_string();
            assert!(e.contains("cu_seqlens"), "{e}");
        }
    }

    /// Other handles on operands exist only inside the crate: every op that writes refuses them.
    #[test]
    fn outputs_that_share_memory_with_another_operand_are_refused() {
        use crate::ops::{
            activation::{Activation, activation_backward, activation_forward},
            attention::{AttentionShape, attention_backward, attention_forward},
            cross_entropy::{cross_entropy_forward, linear_cross_entropy_forward_backward},
            embedding::embedding_backward,
            gemm::{linear_add_forward, linear_backward_weight, linear_forward, linear_forward_many},
            layernorm::{layernorm_backward, layernorm_forward},
            rmsnorm::{add_rmsnorm_forward, rmsnorm_backward},
            rope::rope_forward,
            rows::{add, cast, copy, gather_rows},
            swiglu::{swiglu_backward, swiglu_forward},
        };
        let t = |name: &str| Tensor::zeros(name, DType::F32, &[4, 4]).unwrap();
        let line = |name: &str| Tensor::zeros(name, DType::F32, &[4]).unwrap();
        let ids = Tensor::from_u32("ids", &[4], &[0, 1, 2, 3]).unwrap();
        let cu = Tensor::from_u32("cu_seqlens", &[2], &[0, 4]).unwrap();
        let (a, b, c, w, v) = (t("a"), t("b"), t("c"), line("w"), line("v"));
        let (mut out, mut other, mut row, mut rows) = (t("out"), t("other"), line("row"), line("rows"));
        // `part` begins a row after `a`, inside of it.
        let [mut alias, mut part] = [a.alias(), a.rows(1..4).unwrap()];
        let inner = a.rows(0..3).unwrap();
        let head = a.rows(0..1).unwrap().view(&[4]).unwrap();
        let shape =
            AttentionShape { heads: 1, kv_heads: 1, head_size: 4, scale: 1.0, window: None, softcap: None };
        let mut scratch =
            Arena::build("s", &Default::default(), |s| LossScratch::lay_out(s, DType::F32, 4, 4, 4, 0))
                .unwrap()
                .0;
        let mut twice = out.alias();
        let mut lse = line("lse").view(&[1, 4]).unwrap();
        let [cos, sin] = [&a, &b].map(|t| t.view(&[8, 2]).unwrap());
        let results = [
            swiglu_forward(&mut alias, &a, &b),
            swiglu_forward(&mut part, &inner, &inner),
            swiglu_backward(&mut out, &mut twice, &a, &b, &b),
            activation_forward(&mut alias, &a, Activation::Gelu),
            activation_backward(&mut alias, &b, &a, Activation::Gelu),
            layernorm_forward(&mut alias, &mut row, &mut rows, &a, &w, &v, 1e-5),
            layernorm_backward(&mut out, Some((&mut w.alias(), &mut row)), &a, &b, &v, &rows, &w),
            add_rmsnorm_forward(&mut out, &mut row, &mut twice, &a, &b, &w, 1e-5),
            rmsnorm_backward(&mut out, Some(&mut w.alias()), &a, &b, &v, &w),
            linear_forward(&mut alias, &a, &b, None),
            linear_forward(&mut alias, &b, &c, Some(&head)),
            linear_add_forward(&mut alias, &b, &c, None, &a),
            linear_forward_many(&mut [&mut out, &mut twice], &a, &[&b, &c]),
            linear_backward_weight(&mut alias, None, &a, &b),
            linear_backward_weight(&mut out, Some(&mut head.alias()), &a, &b),
            attention_forward(&mut alias, &mut lse, &a, &b, &c, &cu, shape),
            attention_backward(&mut out, &mut twice, &mut other, &a, &b, &lse, &a, &b, &c, &cu, shape),
            cross_entropy_forward(&mut head.alias(), &mut alias, &ids),
            linear_cross_entropy_forward_backward(
                &mut row,
                &mut alias,
                None,
                &mut scratch,
                &b,
                &c,
                &ids,
                &head,
                1.0,
            ),
            linear_cross_entropy_forward_backward(
                &mut row,
                &mut out,
                Some(&mut twice),
                &mut scratch,
                &b,
                &c,
                &ids,
                &w,
                1.0,
            ),
            embedding_backward(&mut alias, &a, &ids),
            rope_forward(&mut alias, &ids, &cos, &sin, 4),
            add(&mut alias, &a),
            cast(&mut alias, &a, 1.0),
            copy(&mut part, &inner),
            gather_rows(&mut alias, &a, &ids),
        ];
        for (i, result) in results.into_iter().enumerate() {
            let error = result.expect_err(&format!("call {i}")).to_string();
            assert!(error.contains("overlaps"), "call {i}: {error}");
        }
    }
}
