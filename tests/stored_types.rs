//! The type in which a trained model's weights are written.
use std::{fs, path::Path};

use sdrrl::{
    models::{transformer::weights::Transformer, weights::stored::Stored},
    tensor::DType,
};
use serde_json::{Value, json};

use crate::{
    cli::text,
    exports::{Work, done, types, with_value},
};

const MODEL: &str = "assets/quickstart/model";

/// All weights are written in the type of the base unless another is asked for, which is no other training.
#[test]
fn a_whole_model_is_written_in_its_bases_type() {
    use safetensors::Dtype;
    let work = Work::new(&[]);
    let model = Transformer::load(Path::new(MODEL), DType::F32).unwrap();
    let full = ["--method", "full"];
    for (stored, dtype, name) in [
        (Stored::F32, Dtype::F32, "float32"),
        (Stored::Bf16, Dtype::BF16, "bfloat16"),
        (Stored::F16, Dtype::F16, "float16"),
    ] {
        let (base, out) = (work.at(&format!("{stored}")), format!("{stored}-out"));
        model.save_pretrained(&base, stored, Some(Path::new(MODEL))).unwrap();
        done(&work.train(&base.to_string_lossy(), &out, &full, &[]));
        assert_eq!(types(&work.at(&out)), (vec![dtype], json!(name), Value::Null));
        let asked = [&full[..], &["--save-dtype", "bf16"]].concat();
        done(&work.train(&base.to_string_lossy(), &format!("{stored}-asked"), &asked, &[]));
        assert_eq!(types(&work.at(&format!("{stored}-asked"))).0, [Dtype::BF16]);
    }
    // What f16 cannot hold is written as f32, and it is said: most of this base is f16, and one tensor f32 with a value beyond that.
    let name = "model.layers.0.self_attn.q_proj.weight";
    with_value(&work.at("large"), name, 70000.0);
    let (wide, narrow) = (work.at("large/model.safetensors"), work.at("f16/model.safetensors"));
    let (wide, bytes) = (fs::read(wide).unwrap(), fs::read(&narrow).unwrap());
    let (wide, most) =
        [&wide, &bytes].map(|b| safetensors::SafeTensors::deserialize(b).unwrap().tensors()).into();
    let large = wide.into_iter().filter(|(n, _)| n == name);
    let mixed = most.into_iter().filter(|(n, _)| n != name).chain(large);
    fs::write(&narrow, safetensors::serialize(mixed, None).unwrap()).unwrap();
    let out = work.train(&work.text("f16"), "far", &full, &[]);
    let said = text(&out.stderr);
    assert!(out.status.success() && said.contains("f16, which cannot hold"), "{said}");
    assert_eq!(types(&work.at("far")).0, [Dtype::F32]);
}
