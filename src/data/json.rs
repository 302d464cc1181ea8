//! JSON and TOML of others within bounds: a value takes a hundred times the memory of the two bytes that stand for it, so that a file of some
//! megabytes could fill a machine.
use std::{
    fmt::{self, Formatter},
    fs::File,
    io::{self, ErrorKind, Read},
    path::Path,
};

use anyhow::ensure;
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value};

/// What a file may take in memory beyond [`FACTOR`] times its size, bytes.
pub const FREE: usize = 256 << 20;
/// Memory as a multiple of a file's size.
pub const FACTOR: usize = 20;
/// The most that a value takes while its list grows, bytes: three times its own size.
const VALUE: usize = 240;
/// The longest configuration, index, manifest, recipe or template that is read, bytes.
const LONGEST: u64 = 64 << 20;

/// Refuses text whose values would take more memory than a text of its size may.
pub fn check(text: &[u8]) -> anyhow::Result<()> {
    let room = FREE + FACTOR * text.len();
    if text.len() <= room / VALUE {
        return Ok(());
    }
    let values = text.iter().filter(|b| matches!(b, b',' | b'[' | b'{' | b'=')).count();
    ensure!(
        values <= room / VALUE,
        "{values} values in {} bytes: they would take more memory than {FACTOR} times that",
        text.len()
    );
    Ok(())
}

/// The text of a small file (a configuration, an index, a recipe), within bounds.
pub fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(LONGEST + 1).read_to_string(&mut text)?;
    let refused = |why: String| io::Error::new(ErrorKind::FileTooLarge, why);
    if text.len() as u64 > LONGEST {
        return Err(refused(format!("more than {} MiB: no file of its kind is that long", LONGEST >> 20)));
    }
    check(text.as_bytes()).map_err(|e| refused(e.to_string()))?;
    Ok(text)
}

/// Calls `f` with each element of a JSON array's text, which must be valid.
pub fn for_each_element(text: &[u8], f: &mut dyn FnMut(&[u8]) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let (mut depth, mut start, mut quoted, mut escaped) = (0usize, 0, false, false);
    for (i, &b) in text.iter().enumerate() {
        if quoted {
            (quoted, escaped) = (escaped || b != b'"', !escaped && b == b'\\');
            continue;
        }
        match b {
            b'"' => quoted = true,
            b'[' | b'{' => {
                depth += 1;
                if depth == 1 {
                    start = i + 1;
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        let ends = (depth == 1 && b == b',') || (depth == 0 && b == b']');
        let element = text[start.min(i)..i].trim_ascii();
        if ends && !element.is_empty() {
            f(element)?;
        }
        if ends {
            start = i + 1;
        }
    }
    Ok(())
}

/// JSON in which no object has a key twice: which of the two is meant is not known.
pub struct Unambiguous(pub Value);

impl<'de> Deserialize<'de> for Unambiguous {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Unambiguous, D::Error> {
        from.deserialize_any(Once).map(Unambiguous)
    }
}

struct Once;

impl<'de> Visitor<'de> for Once {
    type Value = Value;

    fn expecting(&self, f: &mut Formatter) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Value, A::Error> {
        let mut list = vec![];
        while let Some(Unambiguous(value)) = from.next_element()? {
            list.push(value);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = from.next_key::<String>()? {
            if map.contains_key(&key) {
                return Err(serde::de::Error::custom(format!("the key `{key}` stands there twice")));
            }
            let Unambiguous(value) = from.next_value()?;
            map.insert(key, value);
        }
        Ok(map.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn many_small_values_are_refused_and_long_texts_are_not() {
        let zeros = format!("[{}0]", "0,".repeat(20 << 20));
        assert!(check(zeros.as_bytes()).unwrap_err().to_string().contains("more memory"));
        let lists = "[".repeat(8 << 20);
        assert!(check(lists.as_bytes()).is_err());
        let text = format!("[\"{}\"]", "word ".repeat(8 << 20));
        check(text.as_bytes()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, zeros).unwrap();
        assert_eq!(read_text(&path).unwrap_err().kind(), ErrorKind::FileTooLarge);
        File::create(&path).unwrap().set_len(LONGEST + 1).unwrap();
        assert_eq!(read_text(&path).unwrap_err().kind(), ErrorKind::FileTooLarge);
    }

    #[test]
    fn a_key_that_stands_twice_is_named_wherever_it_is() {
        for text in [r#"{"a": 1, "a": 1}"#, r#"{"x": [{"a": 1, "b": 2, "a": {}}]}"#] {
            let error = serde_json::from_str::<Unambiguous>(text).err().unwrap().to_string();
            assert!(error.contains("the key `a` stands there twice"), "{error}");
        }
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<i32>().prop_map(Value::from),
            "[a\"\\\\,\\[\\]{}: ]{0,6}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 20, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::vec(("[a\"\\\\,\\]]{0,3}", inner), 0..4)
                    .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn elements_are_those_that_serde_sees(values in proptest::collection::vec(any_value(), 0..6), pretty in any::<bool>()) {
            let value = Value::from(values.clone());
            let text = if pretty { format!("{value:#}\n") } else { value.to_string() };
            let mut found: Vec<Value> = vec![];
            for_each_element(text.as_bytes(), &mut |e| {
                found.push(serde_json::from_slice(e)?);
                Ok(())
            })
            .unwrap();
            prop_assert_eq!(found, values);
            prop_assert_eq!(serde_json::from_str::<Unambiguous>(&text).unwrap().0, value);
        }
    }
}
