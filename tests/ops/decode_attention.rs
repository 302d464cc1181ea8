//! Attention of one new query per row over a cache.
use sdrrl::ops::{
    attention::{AttentionShape, attention_forward},
    decode_attention::{decode_attention_forward, reference},
};

use super::*;

struct Case {
    shape: AttentionShape,
    starts: Vec<u32>,
    lengths: Vec<u32>,
    q: Tensor,
    k: Tensor,
    v: Tensor,
}

impl Case {
    fn new(lengths: &[u32], heads: usize, kv_heads: usize, head_size: usize, window: Option<usize>) -> Case {
        let scale = (head_size as f32).powf(-0.5);
        let shape = AttentionShape { heads, kv_heads, head_size, scale, window, softcap: None };
        // Rows leave room to grow, and the cache begins with a slot that nobody reads.
        let mut next = 1;
        let mut starts = vec![];
        for l in lengths {
            starts.push(next);
            next += l + 3;
        }
        let kv = [next as usize, kv_heads * head_size];
        let q = tensor("q", &[lengths.len(), heads * head_size]);
        Case { shape, starts, lengths: lengths.to_vec(), q, k: tensor("k", &kv), v: tensor("v", &kv) }
    }

    fn run(&self, rows: std::ops::Range<usize>) -> Vec<f32> {
        let q = self.q.slice(rows.clone()).unwrap();
        let mut out = poisoned("out", q.shape());
        let (starts, lengths) =
            (u32s("starts", &self.starts[rows.clone()]), u32s("lengths", &self.lengths[rows]));
        decode_attention_forward(&mut out, &q, &self.k, &self.v, &starts, &lengths, self.shape).unwrap();
        out.to_f32_vec().unwrap()
    }
}

#[test]
fn decode_attention_equals_its_oracle_and_reads_only_its_slots() {
    for (heads, kv_heads, hs) in
        [(1, 1, 16), (3, 1, 64), (4, 1, 80), (4, 4, 20), (6, 2, 128), (9, 3, 64), (2, 1, 2), (2, 1, 256)]
    {
        for (window, softcap) in [
            (None, None),
            (Some(1), None),
            (Some(37), None),
            (Some(usize::MAX), None),
            (Some(300), Some(0.1)),
        ] {
            let mut case = Case::new(&[1, 2, 37, 530, 256], heads, kv_heads, hs, window);
            case.shape.softcap = softcap;
            let mut want = vec![0.0; case.q.len()];
            let (q, k, v) = (wide(&case.q), wide(&case.k), wide(&case.v));
            reference::forward(&mut want, &q, &k, &v, &case.starts, &case.lengths, case.shape);
            let inside = |slot: usize| {
                case.starts.iter().zip(&case.lengths).any(|(&s, &l)| (s..s + l).contains(&(slot as u32)))
            };
            let outside: Vec<usize> = (0..case.k.shape()[0]).filter(|&s| !inside(s)).collect();
            for slot in outside {
                let row = kv_heads * hs;
                change(&mut case.k, |k| k[slot * row..][..row].fill(f32::NAN));
                change(&mut case.v, |v| v[slot * row..][..row].fill(f32::NAN));
            }
            let out = Tensor::from_f32("out", case.q.shape(), &case.run(0..5)).unwrap();
            close(&format!("{:?}", case.shape), &out, &want, F32);
        }
    }
}

#[test]
fn a_decoded_row_has_the_same_bits_in_any_batch_and_for_any_number_of_threads() {
    let case = Case::new(&[700, 3, 1, 129, 1000], 9, 3, 64, None);
    let all = with_threads(3, || case.run(0..5));
    for row in 0..5 {
        let alone = with_threads(1, || case.run(row..row + 1));
        same_bits(&format!("row {row}"), &all[row * 576..][..576], &alone);
    }
}

#[test]
fn decode_attention_continues_attention() {
    for window in [None, Some(20)] {
        let case = Case::new(&[50], 4, 2, 64, window);
        let (k, v) = (case.k.slice(1..51).unwrap(), case.v.slice(1..51).unwrap());
        let mut q = tensor("prompt", &[50, 256]);
        change(&mut q, |q| q[49 * 256..].copy_from_slice(&case.q.to_f32_vec().unwrap()));
        let (mut out, mut lse) = (poisoned("out", &[50, 256]), poisoned("lse", &[4, 50]));
        attention_forward(&mut out, &mut lse, &q, &k, &v, &u32s("cu_seqlens", &[0, 50]), case.shape).unwrap();
        let decoded = Tensor::from_f32("decoded", &[1, 256], &case.run(0..1)).unwrap();
        close("last row", &decoded, &wide(&out.slice(49..50).unwrap()), F32);
    }
}

#[test]
fn decode_attention_refuses_slots_outside_the_cache() {
    let case = Case::new(&[4, 5], 4, 2, 8, None);
    let mut out = poisoned("out", &[2, 32]);
    for (starts, lengths) in
        [([0, 10], [4, 0]), ([0, 10], [4, 9]), ([u32::MAX, 1], [4, 4]), ([0, 1], [u32::MAX, 1])]
    {
        let (starts, lengths) = (u32s("starts", &starts), u32s("lengths", &lengths));
        let r = decode_attention_forward(&mut out, &case.q, &case.k, &case.v, &starts, &lengths, case.shape);
        refused(r, &["row", "k F32", "starts U32 [2]", "lengths U32 [2]"]);
    }
    let starts = u32s("starts", &[1]);
    let r = decode_attention_forward(&mut out, &case.q, &case.k, &case.v, &starts, &starts, case.shape);
    refused(r, &["out F32 [2, 32]", "q F32", "k F32", "v F32", "starts U32 [1]"]);
}
