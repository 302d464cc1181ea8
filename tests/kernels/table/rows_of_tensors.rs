//! Rows gathered and scattered, tensors added, cast and copied.
use sdrrl::ops::rows::{add, cast, copy, gather_rows, scatter_rows};

use super::*;

/// Rows of words, of half words, and of more than one block.
const SHAPES: &[&[usize]] = &[&[5, 6], &[5, 7], &[5, 300], &[3, 72]];
/// An entry of a map that has no row.
const NONE: usize = u32::MAX as usize;

rows! {
    add {
        names: "N C",
        measured: &[(&[8192, 4096], BF16)],
        checked: SHAPES,
        dtypes: BOTH,
        work: |d, t| elements(3 * d[0] * d[1], t),
        make: added,
    }
    cast_to_f32 {
        names: "N C",
        measured: &[(&[8192, 4096], BF16)],
        checked: SHAPES,
        dtypes: BOTH,
        work: |d, t| Work::Bytes((d[0] * d[1] * (t.bytes() + 4)) as f64),
        exact: true,
        make: to_f32,
    }
    cast_from_f32 {
        names: "N C",
        checked: SHAPES,
        dtypes: BOTH,
        make: from_f32,
    }
    gather_rows {
        names: "N C",
        measured: &[(&[8192, 4096], BF16)],
        checked: SHAPES,
        dtypes: BOTH,
        work: |d, t| elements(2 * d[0] * d[1], t),
        rows_alone: false,
        exact: true,
        make: gathered,
    }
    gather_rows_with_holes {
        names: "N C",
        checked: SHAPES,
        dtypes: BOTH,
        rows_alone: false,
        exact: true,
        make: |w, d| moved(w, d, false),
    }
    scatter_rows {
        names: "N C",
        checked: SHAPES,
        dtypes: BOTH,
        rows_alone: false,
        exact: true,
        make: |w, d| moved(w, d, true),
    }
    copy {
        names: "N C",
        checked: SHAPES,
        dtypes: BOTH,
        exact: true,
        make: copied,
    }
}

fn added(w: &World, d: &[usize]) -> Result<Case> {
    let (x, mut y) = (w.normal("x", d, 1)?, w.normal("y", d, 1)?);
    let ([a, b], acts) = (wide([&x, &y])?, w.acts);
    let sum = move |(a, b): (&f64, &f64)| rounded(*a as f32 + *b as f32, acts);
    Ok(case(&[y.reader()], move || add(&mut y, &x))?.exactly(move || vec![a.iter().zip(&b).map(sum).collect()]))
}

fn to_f32(w: &World, d: &[usize]) -> Result<Case> {
    let (x, mut y) = (w.normal("x", d, 1)?, w.out_f32(d)?);
    let [want] = wide([&x])?;
    Ok(case(&[y.reader()], move || cast(&mut y, &x, 0.5))?.against(move || vec![want.iter().map(|x| x * 0.5).collect()]))
}

fn from_f32(w: &World, d: &[usize]) -> Result<Case> {
    let (x, mut y) = (w.normal_f32("x", d)?, w.out(d)?);
    let ([values], acts) = (wide([&x])?, w.acts);
    Ok(case(&[y.reader()], move || cast(&mut y, &x, 0.5))?
        .exactly(move || vec![values.iter().map(|&x| rounded(x as f32 * 0.5, acts)).collect()]))
}

fn gathered(w: &World, d: &[usize]) -> Result<Case> {
    let (x, mut y) = (w.normal("x", d, 1)?, w.out(d)?);
    let (map, [want], (n, c)) = (w.integers("map", d[0], |i| i * 7919 % d[0])?, wide([&x])?, (d[0], d[1]));
    Ok(case(&[y.reader()], move || gather_rows(&mut y, &x, &map))?
        .against(move || vec![(0..n).flat_map(|i| want[i * 7919 % n * c..][..c].to_vec()).collect()]))
}

/// Five rows through a map that leaves one out; what is scattered to keeps its other rows.
fn moved(w: &World, d: &[usize], scatter: bool) -> Result<Case> {
    let (n, c) = (d[0], d[1]);
    let map: Vec<usize> = (0..n).map(|i| if i == 1 { NONE } else { n - 1 - i }).collect();
    let (x, mut y) = (w.normal("x", d, 1)?, w.normal("y", d, 1)?);
    let ([from, before], ids) = (wide([&x, &y])?, w.integers("map", n, |i| map[i])?);
    let outs = [y.reader()];
    let run = move || if scatter { scatter_rows(&mut y, &x, &ids) } else { gather_rows(&mut y, &x, &ids) };
    Ok(case(&outs, run)?.against(move || {
        let mut want = before.clone();
        for (i, &j) in map.iter().enumerate() {
            let row = |from: &[f64], i: usize| from[i * c..][..c].to_vec();
            match (scatter, j == NONE) {
                (true, true) => {}
                (true, false) => want[j * c..][..c].copy_from_slice(&row(&from, i)),
                (false, true) => want[i * c..][..c].fill(0.0),
                (false, false) => want[i * c..][..c].copy_from_slice(&row(&from, j)),
            }
        }
        vec![want]
    }))
}

fn copied(w: &World, d: &[usize]) -> Result<Case> {
    let (x, mut y) = (w.normal("x", d, 1)?, w.out(d)?);
    let [want] = wide([&x])?;
    Ok(case(&[y.reader()], move || copy(&mut y, &x))?.against(move || vec![want.clone()]))
}
