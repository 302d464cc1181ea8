//! hparams.yaml of a COMET model, and what of it decides a score.
use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::{Map, Value};

/// Hyper-parameters by COMET's names; the defaults are those of its `UnifiedMetric`. Training's own are not read.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct Hparams {
    /// Only `unified_metric`.
    pub class_identifier: String,
    /// Only `XLM-RoBERTa`.
    pub encoder_model: String,
    /// Hub name of the encoder, whose config.json and tokenizer the checkpoint goes with.
    pub pretrained_model: String,
    /// `mix`, or the number of one layer.
    pub sent_layer: Value,
    /// `softmax`, `sparsemax`, or `sparsemax_patch`: called sparsemax, trained with softmax (Unbabel/COMET issues 195, 244).
    pub layer_transformation: String,
    /// Only false.
    pub layer_norm: bool,
    /// Widths of the estimator's hidden layers.
    pub hidden_sizes: Vec<usize>,
    /// Only `Tanh`.
    pub activations: String,
    /// Only null.
    pub final_activation: Option<String>,
    /// Only mt, src: a reference-free model.
    pub input_segments: Vec<String>,
}

impl Default for Hparams {
    fn default() -> Hparams {
        let text = String::from;
        Hparams {
            class_identifier: "absent".into(),
            encoder_model: text("XLM-RoBERTa"),
            pretrained_model: text("microsoft/infoxlm-large"),
            sent_layer: "mix".into(),
            layer_transformation: text("sparsemax"),
            layer_norm: true,
            hidden_sizes: vec![3072, 1024],
            activations: text("Tanh"),
            final_activation: None,
            input_segments: ["mt", "src", "ref"].map(text).to_vec(),
        }
    }
}

impl Hparams {
    /// Checks parsed hyper-parameters; what this program would compute otherwise than COMET is refused by name.
    pub fn from_value(value: &Value) -> Result<Hparams> {
        let h: Hparams = serde_json::from_value(value.clone()).context("hparams")?;
        let only = |key: &str, found: &str, one: &str| -> Result<()> {
            ensure!(found.eq_ignore_ascii_case(one), "hparams: {key} is {found}; only {one} can be computed");
            Ok(())
        };
        only("class_identifier", &h.class_identifier, "unified_metric")?;
        only("encoder_model", &h.encoder_model, "XLM-RoBERTa")?;
        only("activations", &h.activations, "Tanh")?;
        only("layer_norm", &h.layer_norm.to_string(), "false")?;
        only("final_activation", h.final_activation.as_deref().unwrap_or("null"), "null")?;
        only("input_segments", &h.input_segments.join(", "), "mt, src")?;
        ensure!(
            ["softmax", "sparsemax", "sparsemax_patch"].contains(&h.layer_transformation.as_str()),
            "hparams: layer_transformation is {}; softmax, sparsemax and sparsemax_patch can be computed",
            h.layer_transformation
        );
        ensure!(
            h.sent_layer == "mix" || h.sent_layer.is_u64(),
            "hparams: sent_layer is {}; `mix` or a layer's number was expected",
            h.sent_layer
        );
        ensure!(
            (1..=16).contains(&h.hidden_sizes.len()) && h.hidden_sizes.iter().all(|&n| n > 0 && n < 1 << 20),
            "hparams: hidden_sizes {:?} are none or absurd",
            h.hidden_sizes
        );
        Ok(h)
    }

    /// What each of the hidden states weighs, from the scalars and gamma of the checkpoint.
    pub fn layer_weights(&self, scalars: &[f32], gamma: f32) -> Result<Vec<f32>> {
        if let Some(layer) = self.sent_layer.as_u64() {
            let (n, layer) = (scalars.len(), layer as usize);
            ensure!(layer < n, "hparams: sent_layer is {layer}, but there are {n} states");
            return Ok((0..n).map(|i| f32::from(u8::from(i == layer))).collect());
        }
        let wide: Vec<f64> = scalars.iter().map(|&x| x as f64).collect();
        let sparse = self.layer_transformation == "sparsemax";
        let weights = if sparse { sparsemax(&wide) } else { softmax(&wide) };
        Ok(weights.into_iter().map(|w| w as f32 * gamma).collect())
    }
}

fn softmax(x: &[f64]) -> Vec<f64> {
    let top = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = x.iter().map(|x| (x - top).exp()).sum();
    x.iter().map(|x| (x - top).exp() / sum).collect()
}

/// The nearest point of the simplex (Martins and Astudillo 2016, algorithm 1).
fn sparsemax(x: &[f64]) -> Vec<f64> {
    let mut sorted = x.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let (mut sum, mut threshold) = (0.0, f64::NEG_INFINITY);
    for (k, z) in sorted.iter().enumerate() {
        sum += z;
        if 1.0 + (k + 1) as f64 * z > sum {
            threshold = (sum - 1.0) / (k + 1) as f64;
        }
    }
    x.iter().map(|x| (x - threshold).max(0.0)).collect()
}

/// The YAML that Lightning writes for hyper-parameters: one `key: value` a line, values scalars or lists of scalars. Anything else (nested
/// maps, anchors, tags, block texts) is refused with its line.
pub fn parse_yaml(text: &str) -> Result<Value> {
    let mut map = Map::new();
    let mut open: Option<String> = None;
    for (number, raw) in text.lines().enumerate() {
        let line = raw.trim_end();
        let content = line.trim_start();
        if content.is_empty() || content.starts_with('#') || line == "---" || line == "..." {
            continue;
        }
        let context = || format!("line {} of the YAML, {content:?}", number + 1);
        if let Some(item) = content.strip_prefix("- ").or((content == "-").then_some("")) {
            let Some(list) = open.as_ref().and_then(|key| map.get_mut(key)) else {
                bail!("{}: a list's entry without a key before it", context())
            };
            if list.is_null() {
                *list = Value::Array(vec![]);
            }
            let Value::Array(entries) = list else { bail!("{}: its key already has a value", context()) };
            entries.push(scalar(item.trim()).with_context(context)?);
            continue;
        }
        ensure!(line.len() == content.len(), "{}: nested maps are not read", context());
        let (key, value) = content.split_once(':').with_context(|| format!("{}: no key", context()))?;
        ensure!(value.is_empty() || value.starts_with(' '), "{}: a space must follow the colon", context());
        let key = key.trim().trim_matches(['"', '\'']).to_string();
        let value = value.trim();
        let parsed = match value.strip_prefix('[').map(|v| v.strip_suffix(']')) {
            Some(None) => bail!("{}: a list must end on its line", context()),
            Some(Some(inner)) if inner.trim().is_empty() => Value::Array(vec![]),
            Some(Some(inner)) => Value::Array(
                inner.split(',').map(|x| scalar(x.trim())).collect::<Result<_>>().with_context(context)?,
            ),
            None => scalar(value).with_context(context)?,
        };
        ensure!(map.insert(key.clone(), parsed).is_none(), "{}: the key stands twice", context());
        open = value.is_empty().then_some(key);
    }
    Ok(Value::Object(map))
}

fn scalar(text: &str) -> Result<Value> {
    for quote in ['"', '\''] {
        if let Some(rest) = text.strip_prefix(quote) {
            let inner = rest.strip_suffix(quote).context("the quotation does not end on its line")?;
            ensure!(!inner.contains(quote) && !inner.contains('\\'), "escapes in quotations are not read");
            return Ok(inner.into());
        }
    }
    let text = text.split(" #").next().unwrap_or_default().trim_end();
    if text.starts_with(['&', '*', '!', '|', '>', '{', '[', '%', '@', '`']) {
        bail!("only plain values and lists of them are read");
    }
    Ok(match text {
        "" | "null" | "~" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => true.into(),
        "false" | "False" | "FALSE" => false.into(),
        _ => match (text.parse::<i64>(), text.parse::<f64>()) {
            (Ok(n), _) => n.into(),
            (_, Ok(x)) if x.is_finite() => x.into(),
            _ => text.into(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    const PUBLISHED: &str = "activations: Tanh\nclass_identifier: unified_metric\ndropout: 0.1\nencoder_learning_rate: 1.0e-06\nencoder_model: XLM-RoBERTa\n\
        final_activation: null\nhidden_sizes:\n- 3072\n- 1024\ninput_segments:\n- mt\n- src\nlayer_norm: false\n\
        layer_transformation: sparsemax_patch\nsent_layer: mix\ntrain_data: []\nword_level_training: false\n";

    #[test]
    fn the_published_file_is_read() {
        let value = parse_yaml(PUBLISHED).unwrap();
        assert_eq!(value["hidden_sizes"], json!([3072, 1024]));
        assert_eq!(value["encoder_learning_rate"], json!(1e-6));
        assert_eq!((&value["final_activation"], &value["train_data"]), (&Value::Null, &json!([])));
        let h = Hparams::from_value(&value).unwrap();
        assert_eq!(h.input_segments, ["mt", "src"]);
        let weights = h.layer_weights(&[0.0, 1.0], 2.0).unwrap();
        assert!((weights[1] - 2.0 / (1.0 + (-1f32).exp())).abs() < 1e-6);
    }

    #[test]
    fn what_would_be_another_model_is_refused_by_name() {
        for (key, value) in [
            ("class_identifier", json!("regression_metric")),
            ("encoder_model", json!("XLM-RoBERTa-XL")),
            ("layer_norm", json!(true)),
            ("activations", json!("Sigmoid")),
            ("final_activation", json!("Sigmoid")),
            ("input_segments", json!(["mt", "src", "ref"])),
            ("layer_transformation", json!("entmax15")),
            ("sent_layer", json!("last")),
            ("hidden_sizes", json!([0])),
        ] {
            let mut bad = parse_yaml(PUBLISHED).unwrap();
            bad[key] = value;
            let error = format!("{:#}", Hparams::from_value(&bad).unwrap_err());
            assert!(error.contains(key), "{error}");
        }
        let mut h = Hparams::from_value(&parse_yaml(PUBLISHED).unwrap()).unwrap();
        h.sent_layer = json!(1);
        assert_eq!(h.layer_weights(&[3.0, 4.0], 9.0).unwrap(), [0.0, 1.0]);
        h.sent_layer = json!(2);
        assert!(h.layer_weights(&[3.0, 4.0], 9.0).is_err());
    }

    #[test]
    fn other_yaml_is_refused_with_its_line() {
        for (bad, named) in [
            ("a: 1\nb:\n  c: 2\n", "line 3"),
            ("- 1\n", "line 1"),
            ("a: 1\n- 2\n", "line 2"),
            ("a: &x 1\n", "line 1"),
            ("a: !!python/object:os.system 1\n", "line 1"),
            ("a: |\n", "line 1"),
            ("a: 1\na: 2\n", "twice"),
            ("a\n", "no key"),
            ("a: [1, 2\n", "end on its line"),
            ("a: 'x\n", "quotation"),
        ] {
            let error = format!("{:#}", parse_yaml(bad).unwrap_err());
            assert!(error.contains(named), "{bad:?}: {error}");
        }
        assert_eq!(parse_yaml("a: [1, x]\nb: 'y z'\n").unwrap(), json!({"a": [1, "x"], "b": "y z"}));
    }

    #[test]
    fn sparsemax_is_a_projection() {
        assert_eq!(sparsemax(&[0.5, 0.5]), [0.5, 0.5]);
        assert_eq!(sparsemax(&[3.0, 1.0, 0.0]), [1.0, 0.0, 0.0]);
        let p = sparsemax(&[0.6, 0.4, 0.2, -1.0]);
        assert!((p.iter().sum::<f64>() - 1.0).abs() < 1e-12 && p[3] == 0.0 && p[0] > p[1], "{p:?}");
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "([a-z]{0,3}(: ?)?[-\\[\\]'\"a-z0-9#&*!|, ]{0,9}\n){0,6}") {
            if let Ok(value) = parse_yaml(&text) {
                let _ = Hparams::from_value(&value);
            }
        }
    }
}
