//! Norms of DoRA's rows.
use super::*;
use crate::models::transformer::{config::Config, lora::LoraConfig};

#[test]
fn norms_are_computed_once_for_each_change_of_the_parameters() {
    let config: Config = serde_json::from_value(serde_json::json!({
        "model_type": "llama", "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2,
        "vocab_size": 10, "max_position_embeddings": 8, "rms_norm_eps": 1e-5, "tie_word_embeddings": true
    }))
    .unwrap();
    let model = Transformer::random(config, 1).unwrap();
    let config = LoraConfig { r: 2, use_dora: true, ..LoraConfig::default() };
    let mut grads =
        Grads::for_lora(&model.spec, Lora::init(&model, config, 1).unwrap(), &Device::Cpu, DType::F32)
            .unwrap()
            .parts;
    let norms = |grads: &Grads| {
        let of = grads.adapters(1).unwrap()[LinearId::V].as_ref().unwrap().norms.as_ref().unwrap().alias();
        (of.to_f32_vec().unwrap(), of)
    };
    grads.refresh(&model).unwrap();
    let (first, mut memory) = norms(&grads);
    assert!(first.iter().all(|&x| x > 0.0));
    // Who finds these has computed nothing.
    let marks = vec![-1.0; first.len()];
    memory.write_f32(&marks).unwrap();
    grads.refresh(&model).unwrap();
    assert_eq!(norms(&grads).0, marks);
    for mut p in grads.params(&model).into_iter().filter(|p| p.kind == ParamKind::LoraB) {
        p.write(&vec![0.0; p.value().len()]).unwrap();
        grads.refresh(&model).unwrap();
        assert_eq!(norms(&grads).0, first, "B was 0 already");
        memory.write_f32(&marks).unwrap();
    }
    let p = &grads.params(&model)[0];
    p.copy_from(&p.value().to_device(&Device::Cpu).unwrap()).unwrap();
    grads.refresh(&model).unwrap();
    assert_eq!(norms(&grads).0, first);
    memory.write_f32(&marks).unwrap();
    p.writable().1.note();
    grads.refresh(&model).unwrap();
    assert_eq!(norms(&grads).0, first);
}
