//! A Parquet row as JSON. As the library has it, but for what that would change: texts that are stored as bytes, 32-bit numbers, columns of one name.
use anyhow::{Result, ensure};
use parquet::record::{Field, Row};
use serde_json::{Map, Number, Value, json};

/// The columns of a row. Errors name a column that stands there twice.
pub(super) fn object(row: &Row) -> Result<Value> {
    let mut out = Map::new();
    for (name, field) in row.get_column_iter() {
        let before = out.insert(name.clone(), value(field)?);
        ensure!(before.is_none(), "the column `{name}` stands there twice");
    }
    Ok(Value::Object(out))
}

fn value(field: &Field) -> Result<Value> {
    Ok(match field {
        // Many writers leave the note out that bytes are text; what is none is no text here either.
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => json!(text),
            Err(_) => json!({"base64": field.to_json_value()}),
        },
        Field::Float(x) => shortest(&x.to_string()),
        Field::Float16(x) => shortest(&x.to_string()),
        Field::Group(row) => object(row)?,
        Field::ListInternal(list) => list.elements().iter().map(value).collect::<Result<_>>()?,
        other => other.to_json_value(),
    })
}

/// The number that these digits are, not what they become with 64 bits.
fn shortest(digits: &str) -> Value {
    digits.parse().ok().and_then(Number::from_f64).map_or(Value::Null, Value::Number)
}

#[cfg(test)]
mod tests {
    use parquet::data_type::ByteArray;

    use super::*;

    #[test]
    fn values_are_what_was_written() {
        let row = |fields: &[(&str, Field)]| {
            object(&Row::new(fields.iter().map(|(n, f)| (n.to_string(), f.clone())).collect()))
        };
        let inner = Row::new(vec![("t".into(), Field::Bytes(ByteArray::from("día")))]);
        let fields = [
            ("text", Field::Bytes(ByteArray::from("Q"))),
            ("bytes", Field::Bytes(ByteArray::from(vec![0xff, 0]))),
            ("f", Field::Float(0.1)),
            ("nan", Field::Float(f32::NAN)),
            ("d", Field::Double(0.1)),
            ("g", Field::Group(inner)),
            ("n", Field::Null),
        ];
        let want = json!({"text": "Q", "bytes": {"base64": "/wA="}, "f": 0.1, "nan": null, "d": 0.1, "g": {"t": "día"}, "n": null});
        assert_eq!(row(&fields).unwrap(), want);
        let twice = row(&[("a", Field::Null), ("a", Field::Bool(true))]).unwrap_err();
        assert!(twice.to_string().contains("`a` stands there twice"), "{twice}");
    }
}
