//! The copies of adapters that products take.
use sdrrl::{
    ops::rows::{CastTable, cast},
    tensor::{Reader, Tensor},
};

use super::*;

rows! {
    cast_many {
        names: "N",
        checked: &[&[5], &[4096], &[9001]],
        rows_alone: false,
        make: casts,
    }
}

fn casts(w: &World, d: &[usize]) -> Result<Case> {
    // A tensor of one element, and of more than a block; neighbours with factors of their own.
    let sizes = [(d[0], 1.0), (1, 0.5), (d[0] + 3, 3.0)];
    let (mut outs, mut inputs, mut wants) = (vec![], vec![], vec![]);
    for (i, &(n, factor)) in sizes.iter().enumerate() {
        let input = w.normal_f32(&format!("x{i}"), &[n])?;
        let [values] = wide([&input])?;
        wants.push(values.iter().map(|&x| rounded(x as f32 * factor, w.acts)).collect::<Vec<f64>>());
        outs.push(w.out(&[n])?);
        inputs.push(input);
    }
    let readers: Vec<Reader> = outs.iter().map(Tensor::reader).collect();
    let mut casts: Vec<_> = outs
        .into_iter()
        .zip(inputs)
        .zip(sizes)
        .map(|((out, input), (_, factor))| (out, input, factor))
        .collect();
    if w.device == Device::Cpu {
        let run = move || casts.iter_mut().try_for_each(|(out, input, factor)| cast(out, input, *factor));
        return Ok(case(&readers, run)?.exactly(move || wants.clone()));
    }
    let mut table = CastTable::new(casts)?;
    Ok(case(&readers, move || table.run())?.exactly(move || wants.clone()))
}
