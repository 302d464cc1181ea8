//! GGUF files (version 3) of what a test puts into them.

/// A metadata value.
pub enum Value<'a> {
    Text(&'a str),
    Count(u32),
    Number(f32),
    Flag(bool),
    Integers(&'a [i32]),
    Texts(&'a [&'a str]),
}

/// A tensor of F32: name, dimensions in Hugging Face's order, values.
pub type Plain = (String, Vec<usize>, Vec<f32>);

fn text(out: &mut Vec<u8>, s: &str) {
    out.extend((s.len() as u64).to_le_bytes());
    out.extend(s.as_bytes());
}

fn value(out: &mut Vec<u8>, value: &Value) {
    let kind = |out: &mut Vec<u8>, n: u32| out.extend(n.to_le_bytes());
    match value {
        Value::Count(x) => {
            kind(out, 4);
            out.extend(x.to_le_bytes());
        }
        Value::Number(x) => {
            kind(out, 6);
            out.extend(x.to_le_bytes());
        }
        Value::Flag(x) => {
            kind(out, 7);
            out.push(*x as u8);
        }
        Value::Text(s) => {
            kind(out, 8);
            text(out, s);
        }
        Value::Integers(list) => {
            kind(out, 9);
            kind(out, 5);
            out.extend((list.len() as u64).to_le_bytes());
            list.iter().for_each(|x| out.extend(x.to_le_bytes()));
        }
        Value::Texts(list) => {
            kind(out, 9);
            kind(out, 8);
            out.extend((list.len() as u64).to_le_bytes());
            list.iter().for_each(|s| text(out, s));
        }
    }
}

/// A tensor of any type: name, dimensions in Hugging Face's order, ggml's type, its bytes.
pub type Typed = (String, Vec<usize>, u32, Vec<u8>);

/// The bytes of a file.
pub fn bytes(metadata: &[(String, Value)], tensors: &[Plain]) -> Vec<u8> {
    let typed = tensors.iter().map(|(name, dims, values)| {
        (name.clone(), dims.clone(), 0, values.iter().flat_map(|x| x.to_le_bytes()).collect())
    });
    typed_bytes(metadata, &typed.collect::<Vec<_>>())
}

/// The bytes of a file whose tensors may have any type.
pub fn typed_bytes(metadata: &[(String, Value)], tensors: &[Typed]) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, v) in metadata {
        text(&mut out, key);
        value(&mut out, v);
    }
    let mut offset = 0u64;
    for (name, dims, kind, values) in tensors {
        text(&mut out, name);
        out.extend((dims.len() as u32).to_le_bytes());
        dims.iter().rev().for_each(|&d| out.extend((d as u64).to_le_bytes()));
        out.extend(kind.to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += (values.len() as u64).next_multiple_of(32);
    }
    out.resize(out.len().next_multiple_of(32), 0);
    for (.., values) in tensors {
        out.extend(values);
        out.resize(out.len().next_multiple_of(32), 0);
    }
    out
}

/// Metadata of a small Llama of one layer, and `more`.
pub fn llama<'a>(more: Vec<(&str, Value<'a>)>) -> Vec<(String, Value<'a>)> {
    let mut all: Vec<(String, Value)> = vec![
        ("general.architecture".into(), Value::Text("llama")),
        ("llama.context_length".into(), Value::Count(64)),
        ("llama.embedding_length".into(), Value::Count(16)),
        ("llama.block_count".into(), Value::Count(1)),
        ("llama.feed_forward_length".into(), Value::Count(24)),
        ("llama.attention.head_count".into(), Value::Count(2)),
        ("llama.attention.head_count_kv".into(), Value::Count(1)),
        ("llama.vocab_size".into(), Value::Count(32)),
    ];
    for (key, value) in more {
        all.retain(|(k, _)| k != key);
        all.push((key.into(), value));
    }
    all
}

/// Its tensors.
pub fn llama_tensors() -> Vec<Plain> {
    let shapes: [(&str, &[usize]); 11] = [
        ("token_embd.weight", &[32, 16]),
        ("output_norm.weight", &[16]),
        ("blk.0.attn_norm.weight", &[16]),
        ("blk.0.ffn_norm.weight", &[16]),
        ("blk.0.attn_q.weight", &[16, 16]),
        ("blk.0.attn_k.weight", &[8, 16]),
        ("blk.0.attn_v.weight", &[8, 16]),
        ("blk.0.attn_output.weight", &[16, 16]),
        ("blk.0.ffn_gate.weight", &[24, 16]),
        ("blk.0.ffn_up.weight", &[24, 16]),
        ("blk.0.ffn_down.weight", &[16, 24]),
    ];
    let tensor = |&(name, dims): &(&str, &[usize])| {
        (name.to_string(), dims.to_vec(), super::uniform(name, dims.iter().product()))
    };
    shapes.iter().map(tensor).collect()
}
