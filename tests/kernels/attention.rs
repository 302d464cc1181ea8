//! Attention forward and backward, causal, windowed, full and cross; decoding.
use sdrrl::{
    ops::{
        attention::{
            AttentionShape, attention_backward, attention_forward, cross_attention_backward,
            cross_attention_forward, reference,
        },
        decode_attention::{self, decode_attention_forward, gpu::decode_attention_split},
    },
    tensor::DType::{self, Bf16, F32},
};

use super::*;

fn shape(heads: usize, kv_heads: usize, head_size: usize, window: Option<usize>) -> AttentionShape {
    let scale = 1.0 / (head_size as f32).sqrt();
    AttentionShape { heads, kv_heads, head_size, scale, window, softcap: None }
}

/// Scores that a cap bends: of a few units, where the cap is 2.
fn capped(heads: usize, kv_heads: usize, head_size: usize, window: Option<usize>) -> AttentionShape {
    AttentionShape { scale: 0.5, softcap: Some(2.0), ..shape(heads, kv_heads, head_size, window) }
}

/// Ragged documents, one of them empty, one longer than two tiles of 64.
const DOCUMENTS: [u32; 5] = [0, 3, 3, 136, 171];

/// More documents than a warp has lanes, some of them empty, one longer than a tile.
fn many() -> Vec<u32> {
    let length = |d: u32| if d == 50 { 70 } else { d * 7 % 5 };
    (0..=75).map(|d| (0..d).map(length).sum()).collect()
}

fn causal(device: &Device, dtype: DType, s: AttentionShape, cu: &[u32]) {
    let n = cu[cu.len() - 1] as usize;
    let (nq, nk) = (n * s.heads * s.head_size, n * s.kv_heads * s.head_size);
    let ((q, wq), (k, wk), (v, wv)) =
        (random("q", dtype, nq), random("k", dtype, nk), random("v", dtype, nk));
    let (qd, kd) = ([n, s.heads * s.head_size], [n, s.kv_heads * s.head_size]);
    let (tq, tk, tv) =
        (put(device, dtype, &qd, &q), put(device, dtype, &kd, &k), put(device, dtype, &kd, &v));
    let tcu = put_u32(device, cu);
    let (mut y, mut lse) = (out(device, dtype, &qd), out(device, F32, &[s.heads, n]));
    attention_forward(&mut y, &mut lse, &tq, &tk, &tv, &tcu, s).unwrap();
    let (mut wy, mut wlse) = (vec![0.0; nq], vec![0.0; s.heads * n]);
    reference::forward(&mut wy, &mut wlse, &wq, &wk, &wv, cu, s);
    assert_near("out", &y, &wy);
    assert_within("lse", &lse, &wlse, tolerance(dtype));
    let (d, wd) = random("d", dtype, nq);
    let (mut dq, mut dk, mut dv) =
        (out(device, dtype, &qd), out(device, dtype, &kd), out(device, dtype, &kd));
    let td = put(device, dtype, &qd, &d);
    attention_backward(&mut dq, &mut dk, &mut dv, &td, &y, &lse, &tq, &tk, &tv, &tcu, s).unwrap();
    let (mut wdq, mut wdk, mut wdv) = (vec![0.0; nq], vec![0.0; nk], vec![0.0; nk]);
    reference::backward(&mut wdq, &mut wdk, &mut wdv, &wd, &wy, &wlse, &wq, &wk, &wv, cu, s);
    assert_near("dq", &dq, &wdq);
    assert_near("dk", &dk, &wdk);
    assert_near("dv", &dv, &wdv);
}

/// Full attention over other sequences' keys, held to the CPU arm, which is held to finite differences in `tests/ops`.
fn cross(device: &Device, dtype: DType, s: AttentionShape) {
    let (cu_q, cu_k) = ([0u32, 5, 70, 71], [0u32, 33, 50, 50]);
    let (n, m) = (71, 50);
    let (qd, kd) = ([n, 80], [m, 40]);
    let (q, k, v, d) = (
        random("q", dtype, n * 80).0,
        random("k", dtype, m * 40).0,
        random("v", dtype, m * 40).0,
        random("d", dtype, n * 80).0,
    );
    let run = |device: &Device, dtype: DType| {
        let (tq, tk, tv, td) = (
            put(device, dtype, &qd, &q),
            put(device, dtype, &kd, &k),
            put(device, dtype, &kd, &v),
            put(device, dtype, &qd, &d),
        );
        let (cu_q, cu_k) = (put_u32(device, &cu_q), put_u32(device, &cu_k));
        let (mut y, mut lse) = (out(device, dtype, &qd), out(device, F32, &[2, n]));
        cross_attention_forward(&mut y, &mut lse, &tq, &tk, &tv, &cu_q, &cu_k, s).unwrap();
        let (mut dq, mut dk, mut dv) =
            (out(device, dtype, &qd), out(device, dtype, &kd), out(device, dtype, &kd));
        cross_attention_backward(&mut dq, &mut dk, &mut dv, &td, &y, &lse, &tq, &tk, &tv, &cu_q, &cu_k, s)
            .unwrap();
        [y, dq, dk, dv]
    };
    for (got, want) in run(device, dtype).iter().zip(run(&Device::Cpu, F32)) {
        let want: Vec<f64> = want.to_f32_vec().unwrap().into_iter().map(f64::from).collect();
        assert_near("cross attention", got, &want);
    }
}

/// The rows of `lengths`, in a cache with unused slots between them.
fn decode(device: &Device, dtype: DType, s: AttentionShape, lengths: &[u32]) {
    let rows = lengths.len();
    let starts: Vec<u32> = (0..rows).map(|i| lengths[..i].iter().sum::<u32>() + 2 * i as u32).collect();
    let slots = (starts[rows - 1] + lengths[rows - 1]) as usize;
    let (qrow, row) = (s.heads * s.head_size, s.kv_heads * s.head_size);
    let ((q, wq), (k, wk), (v, wv)) =
        (random("q", dtype, rows * qrow), random("k", dtype, slots * row), random("v", dtype, slots * row));
    let (tk, tv) = (put(device, dtype, &[slots, row], &k), put(device, dtype, &[slots, row], &v));
    let mut want = vec![0.0; rows * qrow];
    decode_attention::reference::forward(&mut want, &wq, &wk, &wv, &starts, lengths, s);
    let (tq, ts, tl) =
        (put(device, dtype, &[rows, qrow], &q), put_u32(device, &starts), put_u32(device, lengths));
    let mut y = out(device, dtype, &[rows, qrow]);
    decode_attention_forward(&mut y, &tq, &tk, &tv, &ts, &tl, s).unwrap();
    assert_near("out", &y, &want);
    // The same bits from every number of blocks, and for a row alone.
    let bits = y.to_f32_vec().unwrap();
    for split in [1, 2, 16] {
        let mut y = out(device, dtype, &[rows, qrow]);
        decode_attention_split(&mut y, [&tq, &tk, &tv, &ts, &tl], s, split).unwrap();
        assert_eq!(y.to_f32_vec().unwrap(), bits, "{split} blocks");
    }
    let last = rows - 1;
    let (tq, ts, tl) = (
        put(device, dtype, &[1, qrow], &q[last * qrow..]),
        put_u32(device, &starts[last..]),
        put_u32(device, &lengths[last..]),
    );
    let mut y = out(device, dtype, &[1, qrow]);
    decode_attention_forward(&mut y, &tq, &tk, &tv, &ts, &tl, s).unwrap();
    assert_eq!(y.to_f32_vec().unwrap(), bits[last * qrow..], "the last row alone");
}

/// A row that leaves the cache gives NaN and touches no other; the kernel cannot report it.
fn decode_outside(device: &Device) {
    let s = shape(2, 1, 64, Some(3));
    let kv = put(device, Bf16, &[20, 64], &random("kv", Bf16, 20 * 64).0);
    let q = put(device, Bf16, &[4, 128], &random("q", Bf16, 4 * 128).0);
    let (starts, lengths) = (put_u32(device, &[0, 15, u32::MAX - 4, 2]), put_u32(device, &[7, 6, 10, 0]));
    let mut y = out(device, Bf16, &[4, 128]);
    decode_attention_forward(&mut y, &q, &kv, &kv, &starts, &lengths, s).unwrap();
    let y = y.to_f32_vec().unwrap();
    assert!(y[..128].iter().all(|x| x.is_finite()) && y[128..].iter().all(|x| x.is_nan()), "{y:?}");
}

cases! {
    attention_f32_64(device) { causal(device, F32, shape(2, 1, 64, None), &DOCUMENTS) }
    attention_f32_window_odd(device) { causal(device, F32, shape(2, 2, 20, Some(33)), &DOCUMENTS) }
    attention_of_many_documents(device) {
        causal(device, Bf16, shape(1, 1, 20, None), &many());
        causal(device, F32, shape(1, 1, 20, None), &many());
    }
    attention_f32_128(device) { causal(device, F32, shape(1, 1, 128, None), &[0, 40]) }
    attention_bf16_64(device) { causal(device, Bf16, shape(4, 2, 64, None), &DOCUMENTS) }
    attention_bf16_window(device) { causal(device, Bf16, shape(2, 1, 32, Some(33)), &DOCUMENTS) }
    attention_bf16_odd_heads(device) { causal(device, Bf16, shape(2, 2, 20, None), &[0, 1, 70]) }
    attention_bf16_128(device) { causal(device, Bf16, shape(2, 1, 128, None), &[0, 70, 75]) }
    attention_f32_256(device) { causal(device, F32, shape(2, 1, 256, None), &[0, 35, 40]) }
    attention_f32_cap(device) { causal(device, F32, capped(2, 1, 20, Some(33)), &DOCUMENTS) }
    attention_f32_cap_256(device) { causal(device, F32, capped(1, 1, 200, None), &[0, 35]) }
    attention_bf16_80_and_96(device) {
        causal(device, Bf16, shape(1, 1, 80, None), &[0, 70]);
        causal(device, Bf16, shape(2, 1, 96, None), &[0, 40]);
    }
    attention_bf16_256(device) { causal(device, Bf16, shape(2, 1, 256, None), &[0, 70, 75]) }
    attention_bf16_cap(device) { causal(device, Bf16, capped(4, 2, 64, Some(33)), &DOCUMENTS) }
    attention_bf16_cap_256(device) { causal(device, Bf16, capped(2, 1, 256, Some(33)), &[0, 70, 75]) }
    cross_attention_f32(device) { cross(device, F32, shape(2, 1, 40, None)) }
    cross_attention_bf16(device) { cross(device, Bf16, shape(2, 1, 40, None)) }
    cross_attention_cap(device) { cross(device, F32, capped(2, 1, 40, None)); cross(device, Bf16, capped(2, 1, 40, None)) }
    decode_attention_f32_cap(device) { decode(device, F32, capped(4, 2, 64, Some(40)), &[1, 31, 257]) }
    decode_attention_bf16_cap(device) { decode(device, Bf16, capped(2, 1, 256, None), &[33, 1, 130]) }
    decode_attention_f32(device) { decode(device, F32, shape(4, 2, 64, None), &[1, 31, 257]) }
    decode_attention_f32_odd(device) { decode(device, F32, shape(2, 2, 30, None), &[33, 130]) }
    decode_attention_f32_128(device) { decode(device, F32, shape(1, 1, 128, None), &[257]) }
    decode_attention_f32_256(device) { decode(device, F32, shape(2, 1, 256, None), &[65, 3]) }
    decode_attention_bf16(device) { decode(device, Bf16, shape(2, 1, 200, Some(150)), &[1, 33, 300]) }
    decode_attention_bf16_64(device) { decode(device, Bf16, shape(2, 2, 64, None), &[31, 1100]) }
    decode_attention_bf16_128(device) { decode(device, Bf16, shape(2, 2, 128, None), &[33, 1, 257]) }
    decode_attention_bf16_shared(device) { decode(device, Bf16, shape(5, 1, 128, None), &[257, 31]) }
    decode_attention_bf16_odd(device) { decode(device, Bf16, shape(3, 1, 20, Some(40)), &[31, 133]) }
    decode_attention_outside_the_cache(device) { decode_outside(device) }
}

#[test]
fn attention_has_no_bank_conflicts_at_64_128_and_256() {
    let run = |device: &Device| {
        causal(device, Bf16, shape(1, 1, 64, None), &[0, 100]);
        causal(device, Bf16, shape(1, 1, 128, None), &[0, 100]);
        causal(device, Bf16, shape(1, 1, 256, None), &[0, 100]);
    };
    if let Some(stats) = profile(run) {
        assert_eq!(stats.bank_conflicts(), 0, "{stats:?}");
    }
}
