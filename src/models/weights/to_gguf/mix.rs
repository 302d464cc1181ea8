//! Which type each tensor of a GGUF file gets: llama.cpp's file types (`llama_tensor_get_type_impl` and `tensor_type_fallback` in llama-quant.cpp) for dense decoders, without an importance matrix.
use std::{fmt, str::FromStr};

use anyhow::{Result, bail};

use crate::{
    models::transformer::{ids::LinearId, spec::Spec, tree::Place},
    ops::quantize::GgmlType,
};

/// What a file's matrices mostly are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileType(&'static Row);

/// A file type's name, `general.file_type`, and the type of a matrix that no rule names.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    name: &'static str,
    number: usize,
    kind: GgmlType,
}

const fn row(name: &'static str, number: usize, kind: GgmlType) -> Row {
    Row { name, number, kind }
}

static ROWS: [Row; 9] = [
    row("F32", 0, GgmlType::F32),
    row("F16", 1, GgmlType::F16),
    row("BF16", 32, GgmlType::Bf16),
    row("Q8_0", 7, GgmlType::Q8_0),
    row("Q6_K", 18, GgmlType::Q6K),
    row("Q5_K_M", 17, GgmlType::Q5K),
    row("Q5_K_S", 16, GgmlType::Q5K),
    row("Q4_K_M", 15, GgmlType::Q4K),
    row("Q4_K_S", 14, GgmlType::Q4K),
];

impl FromStr for FileType {
    type Err = anyhow::Error;
    fn from_str(s: &str) -> Result<FileType> {
        let upper = s.to_ascii_uppercase();
        // As llama.cpp's own program has it.
        let full = if ["Q4_K", "Q5_K"].contains(&upper.as_str()) { upper + "_M" } else { upper };
        match ROWS.iter().find(|r| r.name == full) {
            Some(row) => Ok(FileType(row)),
            None => bail!(
                "`{s}` is none of {} (Q4_K and Q5_K are Q4_K_M and Q5_K_M)",
                ROWS.iter().map(|r| r.name).collect::<Vec<_>>().join(", ")
            ),
        }
    }
}

impl fmt::Display for FileType {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.0.name)
    }
}

impl FileType {
    /// `general.file_type`.
    pub fn number(self) -> usize {
        self.0.number
    }

    /// The type of an adapter's factors with rows of `cols` values; an error for types that llama.cpp's converter does not give them.
    pub(super) fn of_factor(self, cols: usize) -> Result<GgmlType> {
        use GgmlType::{Bf16, F16, F32, Q8_0};
        match self.0.kind {
            kind @ (F32 | F16 | Bf16) => Ok(kind),
            Q8_0 => Ok(if cols.is_multiple_of(32) { Q8_0 } else { F16 }),
            _ => bail!("an adapter is written as F32, F16, BF16 or Q8_0, not {self}"),
        }
    }

    /// The type of the tensor at `place` of a decoder, with rows of `cols` values.
    pub(super) fn of(self, place: Place, cols: usize, spec: &Spec, architecture: &str) -> GgmlType {
        if !place.is_matrix() {
            return GgmlType::F32;
        }
        let kind = self.0.kind;
        if matches!(kind, GgmlType::F32 | GgmlType::F16 | GgmlType::Bf16) {
            return kind;
        }
        fitting(self.chosen(place, cols, spec, architecture), cols)
    }

    fn chosen(self, place: Place, cols: usize, spec: &Spec, architecture: &str) -> GgmlType {
        let (name, kind, layers) = (self.0.name, self.0.kind, spec.layers.len());
        match place {
            Place::Head => of_head(kind, cols),
            Place::Embedding if spec.tied_head => of_head(kind, cols),
            Place::Weight(l, LinearId::V) => match name {
                "Q4_K_M" | "Q5_K_M" if more_bits(l, layers) => GgmlType::Q6K,
                "Q4_K_S" if l < 4 => GgmlType::Q5K,
                _ if kind == GgmlType::Q4K && is_70b(spec, architecture) => GgmlType::Q5K,
                _ => kind,
            },
            Place::Weight(l, LinearId::Down) => match name {
                "Q4_K_M" | "Q5_K_M" if more_bits(l, layers) => GgmlType::Q6K,
                "Q4_K_S" if l < layers / 8 => GgmlType::Q5K,
                _ => kind,
            },
            _ => kind,
        }
    }
}

/// Of the head, and of an embedding that is the head too.
fn of_head(kind: GgmlType, cols: usize) -> GgmlType {
    match kind {
        GgmlType::Q8_0 => GgmlType::Q8_0,
        _ if !cols.is_multiple_of(kind.block().0) => GgmlType::Q8_0,
        _ => GgmlType::Q6K,
    }
}

/// The first and the last eighth of the layers, and every third between: llama.cpp's `use_more_bits`.
fn more_bits(l: usize, layers: usize) -> bool {
    let eighth = layers / 8;
    l < eighth || l >= 7 * layers / 8 || (l - eighth) % 3 == 2
}

/// What llama.cpp calls a 70B: eight queries share a value, so that these matrices are small.
fn is_70b(spec: &Spec, architecture: &str) -> bool {
    spec.layers.len() == 80
        && match architecture {
            "llama" => spec.heads != spec.kv_heads,
            "qwen2" => true,
            _ => false,
        }
}

/// The type that takes another's place where its blocks do not fit rows of `cols` values.
fn fitting(kind: GgmlType, cols: usize) -> GgmlType {
    let fits = |kind: GgmlType| cols.is_multiple_of(kind.block().0);
    let smaller = match kind {
        kind if fits(kind) => kind,
        GgmlType::Q4K => GgmlType::Q5_0,
        GgmlType::Q5K => GgmlType::Q5_1,
        GgmlType::Q6K => GgmlType::Q8_0,
        other => other,
    };
    if fits(smaller) { smaller } else { GgmlType::F16 }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;
    use crate::models::transformer::config::Config;

    /// The decoder of a case of the golden file.
    fn spec(case: &Value) -> Spec {
        let number = |key: &str| case[key].as_u64().unwrap();
        let model_type = match case["architecture"].as_str().unwrap() {
            "gemma3" => "gemma3_text",
            other => other,
        };
        let config = json!({"model_type": model_type, "hidden_size": number("cols"), "intermediate_size": number("cols"),
            "num_hidden_layers": number("layers"), "num_attention_heads": number("heads"), "num_key_value_heads": number("kv-heads"),
            "head_dim": 32, "vocab_size": 64, "tie_word_embeddings": case["head"] == false, "sliding_window": 16});
        Config::from_value(config).unwrap().spec().unwrap()
    }

    /// What llama.cpp's own quantisation gives tensors of these names (scripts/golden_quantize.py).
    #[test]
    fn every_tensor_gets_the_type_that_llama_cpp_gives_it() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf/made.json");
        let golden: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let cases = golden["mixes"].as_array().unwrap();
        assert_eq!(cases.len(), 9);
        for case in cases {
            let (spec, cols) = (spec(case), case["cols"].as_u64().unwrap() as usize);
            for (name, others) in case["others"].as_object().unwrap() {
                let kind: FileType = name.parse().unwrap();
                for leaf in spec.leaves().iter().filter(|leaf| leaf.place.is_matrix()) {
                    let got = kind.of(leaf.place, cols, &spec, case["architecture"].as_str().unwrap());
                    let tensor = leaf.place.gguf();
                    let want = others[&tensor].as_str().unwrap_or(kind.0.kind.name());
                    assert_eq!(got.name(), want, "{name} of {tensor}: {}", case["architecture"]);
                }
            }
        }
    }

    #[test]
    fn names_are_llama_cpps_in_any_case() {
        for (name, want) in [("q4_k_m", "Q4_K_M"), ("Q4_K", "Q4_K_M"), ("q5_k", "Q5_K_M"), ("bf16", "BF16")] {
            assert_eq!(name.parse::<FileType>().unwrap().to_string(), want);
        }
        let error = "Q3_K_M".parse::<FileType>().unwrap_err().to_string();
        assert!(error.contains("Q3_K_M") && error.contains("Q4_K_S"), "{error}");
    }
}
