//! Models of benches/shapes.json with random weights, and the card that a figure is printed with.
use half::bf16;
use rayon::prelude::*;
use sdrrl::{
    data::random::RowRandom,
    device::Device,
    models::transformer::{config::Config, tree::Place, weights::Transformer},
    tensor::{DType, Tensor},
};
use serde_json::Value;

/// The shape's configuration.
pub fn config(shape: &str) -> Config {
    let text = std::fs::read_to_string("benches/shapes.json").expect("run from the repository's root");
    let shapes: Value = serde_json::from_str(&text).expect("benches/shapes.json is JSON");
    let found = shapes.get(shape).unwrap_or_else(|| panic!("no shape {shape} in benches/shapes.json"));
    serde_json::from_value(found.clone()).expect("the shape is sound")
}

/// Parameters of a model's products: of a layer's seven linears, of the head.
pub fn product_parameters(c: &Config) -> (f64, f64) {
    let [hidden, query, kv, mlp, vocab] =
        [c.hidden_size, c.query_size(), c.kv_size(), c.intermediate_size, c.vocab_size].map(|x| x as f64);
    (2.0 * hidden * (query + kv) + 3.0 * hidden * mlp, hidden * vocab)
}

/// Normal weights (sum of four uniforms, standard deviation 0.02), from a table that is read on and on: billions of draws would take minutes. One tensor at a
/// time is in main memory if the device is a GPU.
pub fn random_model(config: Config, dtype: DType, device: &Device) -> Transformer {
    let mut random = RowRandom::new(1, "bench", "weights");
    let scale = 0.02 * 3f64.sqrt();
    let table: Vec<f32> = (0..1_000_003)
        .map(|_| (((0..4).map(|_| random.uniform()).sum::<f64>() - 2.0) * scale) as f32)
        .collect();
    let narrow: Vec<bf16> = table.iter().map(|&x| bf16::from_f32(x)).collect();
    let mut next = 0;
    let model = Transformer::build(config, &mut |leaf| {
        let matrix = leaf.place.is_matrix();
        let mut t = Tensor::zeros(&leaf.name, if matrix { dtype } else { DType::F32 }, &leaf.dims)?;
        let from = next;
        next = (next + t.len()) % table.len();
        match dtype {
            _ if !matrix => {
                let value = if matches!(leaf.place, Place::Bias(..)) { 0.0 } else { 1.0 };
                t.write_f32(&vec![value; t.len()])?;
            }
            DType::Bf16 => t.write_bf16(&repeat(t.len(), &narrow, from))?,
            _ => t.write_f32(&repeat(t.len(), &table, from))?,
        }
        if *device == Device::Cpu { Ok(t) } else { t.to_device(device) }
    });
    model.expect("memory for the model")
}

/// `len` elements: `table`, over and over, beginning at `from`.
fn repeat<T: Copy + Default + Send + Sync>(len: usize, table: &[T], from: usize) -> Vec<T> {
    let mut out = vec![T::default(); len];
    out.par_chunks_mut(table.len()).for_each(|chunk| {
        let first = chunk.len().min(table.len() - from);
        chunk[..first].copy_from_slice(&table[from..from + first]);
        let rest = chunk.len() - first;
        chunk[first..].copy_from_slice(&table[..rest]);
    });
    out
}

/// What a contestant's name must say too: how it differs from what was asked for. `card` is where it should have run.
pub fn remarks(result: Option<&Value>, card: Option<&str>) -> String {
    let Some(result) = result else { return String::new() };
    let checkpointing = if result["checkpointing"] == true { ", checkpointing" } else { "" };
    let elsewhere = if card.is_some() && result["card"].is_null() { ", on the CPU" } else { "" };
    format!("{checkpointing}{elsewhere}")
}
