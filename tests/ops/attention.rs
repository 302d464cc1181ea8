//! Attention over packed documents.
use sdrrl::{
    ops::attention::{
        AttentionShape, attention_backward, attention_forward, cross_attention_forward, reference,
    },
    tensor::Tensor,
};

use super::*;

struct Case {
    shape: AttentionShape,
    cu: Vec<u32>,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dout: Tensor,
}

struct Results {
    out: Tensor,
    lse: Tensor,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
}

fn offsets(lengths: &[usize]) -> Vec<u32> {
    let mut cu = vec![0];
    lengths.iter().for_each(|&l| cu.push(cu[cu.len() - 1] + l as u32));
    cu
}

impl Case {
    fn new(
        lengths: &[usize],
        heads: usize,
        kv_heads: usize,
        head_size: usize,
        window: Option<usize>,
    ) -> Case {
        let scale = (head_size as f32).powf(-0.5);
        let shape = AttentionShape { heads, kv_heads, head_size, scale, window, softcap: None };
        let n = lengths.iter().sum();
        let t = |name, heads| tensor(name, &[n, heads * head_size]);
        let (q, k, v, dout) = (t("q", heads), t("k", kv_heads), t("v", kv_heads), t("dout", heads));
        Case { shape, cu: offsets(lengths), q, k, v, dout }
    }

    /// The documents `range` alone.
    fn documents(&self, range: std::ops::Range<usize>) -> Case {
        let first = self.cu[range.start];
        let rows = first as usize..self.cu[range.end] as usize;
        let cut = |t: &Tensor| t.to_device(&Device::Cpu).unwrap().into_rows(rows.clone()).unwrap();
        let cu = self.cu[range.start..=range.end].iter().map(|c| c - first).collect();
        let Case { shape, q, k, v, dout, .. } = self;
        Case { shape: *shape, cu, q: cut(q), k: cut(k), v: cut(v), dout: cut(dout) }
    }

    fn run(&self) -> Results {
        let Case { shape, q, k, v, dout, .. } = self;
        let cu = u32s("cu_seqlens", &self.cu);
        let mut r = Results {
            out: poisoned("out", q.shape()),
            lse: poisoned("lse", &[shape.heads, q.shape()[0]]),
            dq: poisoned("dq", q.shape()),
            dk: poisoned("dk", k.shape()),
            dv: poisoned("dv", v.shape()),
        };
        attention_forward(&mut r.out, &mut r.lse, q, k, v, &cu, *shape).unwrap();
        let Results { out, lse, dq, dk, dv } = &mut r;
        attention_backward(dq, dk, dv, dout, out, lse, q, k, v, &cu, *shape).unwrap();
        r
    }
}

/// The oracle's results, f64.
struct Oracle {
    out: Vec<f64>,
    lse: Vec<f64>,
    dq: Vec<f64>,
    dk: Vec<f64>,
    dv: Vec<f64>,
}

fn oracle(q: &[f64], k: &[f64], v: &[f64], dout: &[f64], cu: &[u32], shape: AttentionShape) -> Oracle {
    let n = cu[cu.len() - 1] as usize;
    let zeros = |x: &[f64]| vec![0.0; x.len()];
    let (out, lse) = (zeros(q), vec![0.0; n * shape.heads]);
    let mut o = Oracle { out, lse, dq: zeros(q), dk: zeros(k), dv: zeros(v) };
    reference::forward(&mut o.out, &mut o.lse, q, k, v, cu, shape);
    let Oracle { out, lse, dq, dk, dv } = &mut o;
    reference::backward(dq, dk, dv, dout, out, lse, q, k, v, cu, shape);
    o
}

#[test]
fn attention_equals_its_oracle_over_awkward_shapes() {
    let documents: [&[usize]; 7] = [&[0], &[1], &[2, 0, 1, 37], &[31, 33], &[64, 65, 7], &[129], &[300]];
    let heads = [(1, 1, 16), (3, 1, 64), (4, 1, 80), (4, 4, 20), (6, 2, 128), (9, 3, 64), (2, 1, 2)];
    for (d, lengths) in documents.iter().enumerate() {
        for (h, &(nh, nkv, hs)) in heads.iter().enumerate() {
            let window = [None, Some(1), Some(5), Some(64), Some(100), Some(usize::MAX)][(d + h) % 6];
            let case = Case::new(lengths, nh, nkv, hs, window);
            let r = case.run();
            let Case { shape, cu, q, k, v, dout } = &case;
            let o = oracle(&wide(q), &wide(k), &wide(v), &wide(dout), cu, *shape);
            let at = format!("{lengths:?} {shape:?}");
            close(&format!("out {at}"), &r.out, &o.out, F32);
            close(&format!("lse {at}"), &r.lse, &o.lse, F32);
            close(&format!("dv {at}"), &r.dv, &o.dv, F32);
            // A query that sees one key has no gradient but rounding, so there is nothing to be relative to.
            if window != Some(1) && lengths.iter().any(|&l| l > 1) {
                // dp - delta cancels: a few more units of rounding than a plain sum.
                close(&format!("dq {at}"), &r.dq, &o.dq, 1e-5);
                close(&format!("dk {at}"), &r.dk, &o.dk, 1e-5);
            }
        }
    }
}

#[test]
fn attention_equals_its_oracle_on_long_documents() {
    for window in [None, Some(90), Some(400)] {
        let case = Case::new(&[3, 700], 2, 1, 32, window);
        let r = case.run();
        let o =
            oracle(&wide(&case.q), &wide(&case.k), &wide(&case.v), &wide(&case.dout), &case.cu, case.shape);
        for (name, got, want) in
            [("out", &r.out, &o.out), ("dq", &r.dq, &o.dq), ("dk", &r.dk, &o.dk), ("dv", &r.dv, &o.dv)]
        {
            close(&format!("{name} {window:?}"), got, want, 1e-5);
        }
    }
}

#[test]
fn capped_attention_and_long_heads_equal_their_oracle() {
    for (nh, nkv, hs, window, softcap) in [
        (2, 1, 256, None, None),
        (2, 1, 256, Some(64), Some(50.0)),
        (2, 2, 96, None, Some(0.5)),
        (4, 2, 20, Some(5), Some(0.1)),
    ] {
        for lengths in [&[2, 0, 1, 37][..], &[300], &[64, 65, 7]] {
            let mut case = Case::new(lengths, nh, nkv, hs, window);
            case.shape.softcap = softcap;
            // Of a few units, so that a small cap cuts deep.
            case.shape.scale = 0.5;
            let r = case.run();
            let Case { shape, cu, q, k, v, dout } = &case;
            let o = oracle(&wide(q), &wide(k), &wide(v), &wide(dout), cu, *shape);
            for (name, got, want) in [
                ("out", &r.out, &o.out),
                ("lse", &r.lse, &o.lse),
                ("dq", &r.dq, &o.dq),
                ("dk", &r.dk, &o.dk),
                ("dv", &r.dv, &o.dv),
            ] {
                close(&format!("{name} {lengths:?} {shape:?}"), got, want, 1e-5);
            }
        }
    }
}

#[test]
fn attention_equals_pytorch() {
    equals_golden(&Golden::open(), None);
}

#[test]
fn capped_attention_equals_gemma_2_of_transformers() {
    equals_golden(&Golden::gemma(), Some(2.0));
}

fn equals_golden(golden: &Golden, softcap: Option<f32>) {
    let lengths: Vec<usize> = golden.u32s("attention.lengths").iter().map(|&l| l as usize).collect();
    for (name, window) in [("windowNone", None), ("window5", Some(5))] {
        let shape = AttentionShape { heads: 4, kv_heads: 2, head_size: 16, scale: 0.25, window, softcap };
        let input = |x: &str| golden.tensor(&format!("attention.{x}"));
        let (q, k, v, dout) = (input("q"), input("k"), input("v"), input("dout"));
        let r = Case { shape, cu: offsets(&lengths), q, k, v, dout }.run();
        for (x, got) in [("out", &r.out), ("dq", &r.dq), ("dk", &r.dk), ("dv", &r.dv)] {
            let want = format!("attention.{name}.{x}");
            close(&want, got, &wide(&golden.tensor(&want)), F32);
        }
    }
}

#[test]
fn the_attention_oracle_equals_finite_differences() {
    for (window, softcap) in [(None, None), (Some(2), None), (Some(3), Some(0.3))] {
        let mut case = Case::new(&[4, 1, 0, 3], 4, 2, 4, window);
        case.shape.softcap = softcap;
        let Case { shape, cu, .. } = &case;
        let (q, k, v, dout) = (wide(&case.q), wide(&case.k), wide(&case.v), wide(&case.dout));
        let o = oracle(&q, &k, &v, &dout, cu, *shape);
        let loss = |q: &[f64], k: &[f64], v: &[f64]| inner(&dout, &oracle(q, k, v, &dout, cu, *shape).out);
        finite_differences("dq", &q, &o.dq, |q| loss(q, &k, &v));
        finite_differences("dk", &k, &o.dk, |k| loss(&q, k, &v));
        finite_differences("dv", &v, &o.dv, |v| loss(&q, &k, v));
    }
}

#[test]
fn packed_attention_has_the_bits_of_unpacked() {
    let lengths = [5, 290, 1, 0, 64, 33];
    for (hs, window) in [(64, None), (24, Some(40))] {
        let packed = Case::new(&lengths, 6, 2, hs, window);
        let all = packed.run();
        let n = packed.q.shape()[0];
        for d in 0..lengths.len() {
            let rows = packed.cu[d] as usize..packed.cu[d + 1] as usize;
            let alone = packed.documents(d..d + 1).run();
            for (name, a, b) in [
                ("out", &all.out, &alone.out),
                ("dq", &all.dq, &alone.dq),
                ("dk", &all.dk, &alone.dk),
                ("dv", &all.dv, &alone.dv),
            ] {
                let a = a.slice(rows.clone()).unwrap();
                same_bits(
                    &format!("{name} of document {d}"),
                    a.to_f32_vec().unwrap(),
                    b.to_f32_vec().unwrap(),
                );
            }
            for h in 0..6 {
                let lse = &all.lse.to_f32_vec().unwrap()[h * n..][rows.clone()];
                same_bits("lse", lse, &alone.lse.to_f32_vec().unwrap()[h * rows.len()..][..rows.len()]);
            }
        }
    }
}

#[test]
fn attention_has_the_same_bits_for_any_number_of_threads() {
    let case = Case::new(&[530, 70], 4, 2, 32, None);
    let one = with_threads(1, || case.run());
    for threads in [2, 3, 5] {
        let r = with_threads(threads, || case.run());
        for (a, b) in [(&one.out, &r.out), (&one.dq, &r.dq), (&one.dk, &r.dk), (&one.dv, &r.dv)] {
            same_bits(&format!("{a:?}, {threads} threads"), a.to_f32_vec().unwrap(), b.to_f32_vec().unwrap());
        }
    }
}

#[test]
fn large_scores_do_not_overflow_and_nan_is_not_hidden() {
    let mut case = Case::new(&[40], 2, 1, 16, None);
    case.shape.scale = 40.0;
    let o = oracle(&wide(&case.q), &wide(&case.k), &wide(&case.v), &wide(&case.dout), &case.cu, case.shape);
    // Scores reach 4000, so an f32 score is off by 2e-4, and so is its probability.
    close("out", &case.run().out, &o.out, 1e-3);
    change(&mut case.k, |k| k[39 * 16] = f32::NAN);
    let out = case.run().out.to_f32_vec().unwrap();
    let row = |i: usize| &out[i * 32..][..32];
    assert!(row(39).iter().all(|x| x.is_nan()) && row(38).iter().all(|x| x.is_finite()));
}

#[test]
fn attention_refuses_tensors_that_do_not_fit() {
    let case = Case::new(&[3, 4], 4, 2, 8, None);
    let Case { shape, q, k, v, dout, .. } = &case;
    let (mut out, mut lse) = (poisoned("out", &[7, 32]), poisoned("lse", &[4, 7]));
    let cu = u32s("cu_seqlens", &case.cu);
    let names =
        ["attention_forward", "out F32 [7, 32]", "lse F32 [4, 7]", "q F32", "k F32", "v F32", "cu_seqlens"];
    let short = tensor("short", &[6, 16]);
    refused(attention_forward(&mut out, &mut lse, q, k, &short, &cu, *shape), &["short F32 [6, 16]"]);
    for wrong in [
        AttentionShape { heads: 3, ..*shape },
        AttentionShape { kv_heads: 0, ..*shape },
        AttentionShape { head_size: 0, ..*shape },
        AttentionShape { window: Some(0), ..*shape },
        AttentionShape { softcap: Some(0.0), ..*shape },
        AttentionShape { softcap: Some(f32::NAN), ..*shape },
    ] {
        refused(attention_forward(&mut out, &mut lse, q, k, v, &cu, wrong), &names);
    }
    for wrong in [&[0u32, 3][..], &[0, 5, 3, 7], &[1, 7], &[0, 8]] {
        let wrong = u32s("cu_seqlens", wrong);
        refused(attention_forward(&mut out, &mut lse, q, k, v, &wrong, *shape), &["cu_seqlens"]);
    }
    let (mut dq, mut dk, mut dv) =
        (poisoned("dq", &[7, 32]), poisoned("dk", &[7, 32]), poisoned("dv", &[7, 16]));
    let r = attention_backward(&mut dq, &mut dk, &mut dv, dout, &out, &lse, q, k, v, &cu, *shape);
    refused(r, &["attention_backward", "dk F32 [7, 32]"]);
}

/// A document's queries and keys have the same bits alone and packed, on any number of threads.
#[test]
fn full_attention_has_the_bits_of_unpacked() {
    let (cu_q, cu_k) = ([0u32, 5, 295, 295, 300], [0u32, 70, 360, 365, 365]);
    let shape =
        AttentionShape { heads: 4, kv_heads: 2, head_size: 24, scale: 0.2, window: None, softcap: None };
    let (q, k, v) = (tensor("q", &[300, 96]), tensor("k", &[365, 48]), tensor("v", &[365, 48]));
    let run = |q: &Tensor, k: &Tensor, v: &Tensor, cu_q: &[u32], cu_k: &[u32]| {
        let (mut out, mut lse) = (poisoned("out", q.shape()), poisoned("lse", &[4, q.shape()[0]]));
        let (cu_q, cu_k) = (u32s("cu_q", cu_q), u32s("cu_k", cu_k));
        cross_attention_forward(&mut out, &mut lse, q, k, v, &cu_q, &cu_k, shape).unwrap();
        out
    };
    let all = with_threads(1, || run(&q, &k, &v, &cu_q, &cu_k));
    same_bits(
        "threads",
        all.to_f32_vec().unwrap(),
        with_threads(3, || run(&q, &k, &v, &cu_q, &cu_k)).to_f32_vec().unwrap(),
    );
    for d in 0..4 {
        let rows = |cu: &[u32]| cu[d] as usize..cu[d + 1] as usize;
        let [q, k, v] = [(&q, &cu_q), (&k, &cu_k), (&v, &cu_k)].map(|(t, cu)| t.slice(rows(cu)).unwrap());
        let alone = run(&q, &k, &v, &[0, q.shape()[0] as u32], &[0, k.shape()[0] as u32]);
        same_bits(
            "alone",
            all.slice(rows(&cu_q)).unwrap().to_f32_vec().unwrap(),
            alone.to_f32_vec().unwrap(),
        );
    }
    assert!(
        all.slice(295..300).unwrap().to_f32_vec().unwrap().iter().all(|&x| x == 0.0),
        "queries without keys"
    );
}
