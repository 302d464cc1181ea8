//! Means of documents.
use sdrrl::ops::segment_mean::{reference, segment_mean_backward, segment_mean_forward};

use super::*;

rows! {
    segment_mean_forward {
        names: "D T C",
        measured: &[(&[64, 40, 4096], BF16)],
        checked: &[&[7, 9, 72], &[3, 2, 131], &[2, 40, 1]],
        dtypes: BOTH,
        work: |d, t| moved(d, t),
        make: |w, d| means(w, d, false),
    }
    segment_mean_backward {
        names: "D T C",
        measured: &[(&[64, 40, 4096], BF16)],
        checked: &[&[7, 9, 72], &[3, 2, 131], &[2, 40, 1]],
        dtypes: BOTH,
        work: |d, t| moved(d, t),
        rows_alone: false,
        make: |w, d| means(w, d, true),
    }
}

/// Where documents of up to `longest` rows end, some without any where the longest have few.
fn ends(documents: usize, longest: usize) -> Vec<usize> {
    let mut ends = vec![0];
    (0..documents).for_each(|i| ends.push(ends[i] + longest - i * 5 % (longest / 2 + 2)));
    ends
}

fn moved(d: &[usize], t: DType) -> Work {
    let rows = ends(d[0], d[1])[d[0]];
    Work::Bytes(((rows * t.bytes() + d[0] * 4) * d[2]) as f64)
}

fn means(w: &World, d: &[usize], back: bool) -> Result<Case> {
    let (documents, c) = (d[0], d[2]);
    let ends = ends(documents, d[1]);
    let n = ends[documents];
    let cu = w.integers("cu_seqlens", documents + 1, |i| ends[i])?;
    if back {
        let (dout, mut dinp) = (w.normal_f32("dout", &[documents, c])?, w.out(&[n, c])?);
        let given = dout.to_f32_vec()?;
        return Ok(case(&[dinp.reader()], move || segment_mean_backward(&mut dinp, &dout, &cu))?
            .against(move || vec![reference::backward(&given, &ends, c)]));
    }
    let (inp, mut out) = (w.normal("inp", &[n, c], 1)?, w.out_f32(&[documents, c])?);
    let given = inp.to_f32_vec()?;
    Ok(case(&[out.reader()], move || segment_mean_forward(&mut out, &inp, &cu))?
        .against(move || vec![reference::forward(&given, &ends, c)]))
}
