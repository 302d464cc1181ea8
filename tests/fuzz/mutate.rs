//! What is done to sound inputs: to bytes, to text, to JSON as a tree, to protobuf messages.
use serde_json::Value;

/// SplitMix64: the same inputs for the same seed.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub fn below(&mut self, n: usize) -> usize {
        if n == 0 { 0 } else { (self.next() % n as u64) as usize }
    }
    pub fn one<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }
    /// A place to cut, and a length of at most `most` from there.
    fn span(&mut self, length: usize, most: usize) -> (usize, usize) {
        let start = self.below(length + 1);
        (start, start + self.below((length - start).min(most) + 1))
    }
}

/// Numbers at which sizes, signs and types change.
const EDGES: [u64; 22] = [
    0,
    1,
    2,
    7,
    8,
    127,
    128,
    255,
    256,
    0x7fff,
    0x8000,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    0x1_0000_0000_0000,
    0x2000_0000_0000_0000,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    u64::MAX,
];

const NUMBERS: [&str; 18] = [
    "0",
    "-1",
    "1",
    "2",
    "255",
    "65536",
    "16777215",
    "2147483648",
    "4294967295",
    "9007199254740993",
    "9223372036854775807",
    "18446744073709551615",
    "18446744073709551616",
    "-9223372036854775808",
    "1e308",
    "1e999",
    "0.1",
    "-0.0",
];

const PIECES: [&str; 26] = [
    "\u{feff}",
    "\u{202e}",
    "\0",
    "\u{1b}[31m",
    "\"",
    "\\",
    "\\u d800",
    "\\ud800",
    "[[[[",
    "]]",
    "{",
    "}",
    ",",
    ":",
    "\n",
    "\r\n",
    "\t",
    "'",
    "''",
    "#",
    "NaN",
    "null",
    "true",
    "\u{10ffff}",
    "▁",
    "é\u{301}",
];

/// Changes bytes in one of many ways; `other` is a further sound input.
pub fn bytes(random: &mut Random, input: &mut Vec<u8>, other: &[u8]) {
    match random.below(12) {
        0 | 1 if !input.is_empty() => {
            let at = random.below(input.len());
            input[at] ^= 1 << random.below(8);
        }
        2 if !input.is_empty() => {
            let at = random.below(input.len());
            input[at] = *random.one(&[0, 1, 0x7f, 0x80, 0xfe, 0xff, b'"', b'\n', b'[', b'{', b'.']);
        }
        3 => {
            let keep = random.below(input.len() + 1);
            input.truncate(keep);
        }
        4 | 5 => number(random, input),
        6 => {
            let (start, end) = random.span(input.len(), 64);
            input.drain(start..end);
        }
        7 => {
            let (start, end) = random.span(input.len(), 64);
            let copy = input[start..end].to_vec();
            let times = if random.below(20) == 0 { 200 } else { 1 };
            let at = random.below(input.len() + 1);
            input.splice(at..at, copy.repeat(times));
        }
        8 => {
            let (start, end) = random.span(other.len(), 256);
            let (from, to) = random.span(input.len(), 256);
            input.splice(from..to, other[start..end].iter().copied());
        }
        9 => {
            let at = random.below(input.len() + 1);
            let end = random.below(other.len() + 1);
            input.truncate(at);
            input.extend(&other[end..]);
        }
        10 => {
            let more: Vec<u8> = (0..1 + random.below(16)).map(|_| random.next() as u8).collect();
            let at = random.below(input.len() + 1);
            input.splice(at..at, more);
        }
        _ => number(random, input),
    }
}

/// Overwrites a number of 1 to 8 bytes with an edge, or with what is near to the old one.
fn number(random: &mut Random, input: &mut [u8]) {
    let width = *random.one(&[1usize, 2, 4, 4, 8, 8]);
    if input.len() < width {
        return;
    }
    let mut at = random.below(input.len() - width + 1);
    if random.below(2) == 0 {
        at -= at % width;
    }
    let mut old = [0; 8];
    old[..width].copy_from_slice(&input[at..at + width]);
    let old = u64::from_le_bytes(old);
    let new = match random.below(5) {
        0 => old.wrapping_add(1),
        1 => old.wrapping_sub(1),
        2 => old << 1 << random.below(8),
        _ => *random.one(&EDGES),
    };
    input[at..at + width].copy_from_slice(&new.to_le_bytes()[..width]);
}

/// Changes text: numbers, quotes, brackets, lines; otherwise as bytes.
pub fn text(random: &mut Random, input: &mut Vec<u8>, other: &[u8]) {
    match random.below(10) {
        0 => replace_number(random, input),
        1 => {
            let at = random.below(input.len() + 1);
            input.splice(at..at, random.one(&PIECES).bytes());
        }
        2 => {
            let deep = *random.one(&[3usize, 100, 200, 2000]);
            let bracket = *random.one(&[b"[".as_slice(), b"{\"a\":", b"(", b"-", b"{%", b"a.", b"[[a.b]]\n"]);
            let at = random.below(input.len() + 1);
            input.splice(at..at, bracket.repeat(deep));
        }
        3 => {
            let mut lines: Vec<&[u8]> = input.split(|b| *b == b'\n').collect();
            let (a, b) = (random.below(lines.len()), random.below(lines.len()));
            match random.below(3) {
                0 => lines.swap(a, b),
                1 => lines.insert(a, lines[b]),
                _ => drop(lines.remove(a)),
            }
            *input = lines.join(&b'\n');
        }
        4 => {
            let quotes: Vec<usize> = (0..input.len()).filter(|&i| input[i] == b'"').collect();
            if !quotes.is_empty() {
                input.remove(*random.one(&quotes));
            }
        }
        _ => bytes(random, input, other),
    }
}

fn replace_number(random: &mut Random, input: &mut Vec<u8>) {
    let digit = |i: usize| input.get(i).is_some_and(u8::is_ascii_digit);
    let starts: Vec<usize> = (0..input.len()).filter(|&i| digit(i) && (i == 0 || !digit(i - 1))).collect();
    if starts.is_empty() {
        return;
    }
    let start = *random.one(&starts);
    let end = (start..).find(|&i| !digit(i)).unwrap_or(start);
    input.splice(start..end, random.one(&NUMBERS).bytes());
}

/// Changes a JSON value somewhere; lines of JSON are changed one at a time, and text that is no JSON as text.
pub fn json(random: &mut Random, input: &mut Vec<u8>, other: &[u8]) {
    if random.below(3) == 0 {
        return text(random, input, other);
    }
    if let Ok(mut value) = serde_json::from_slice::<Value>(input) {
        tree(random, &mut value, 0);
        *input = value.to_string().into_bytes();
        return;
    }
    let mut lines: Vec<Vec<u8>> = input.split(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
    let at = random.below(lines.len());
    match serde_json::from_slice::<Value>(&lines[at]) {
        Ok(mut value) => {
            tree(random, &mut value, 0);
            lines[at] = value.to_string().into_bytes();
            *input = lines.join(&b'\n');
        }
        Err(_) => text(random, input, other),
    }
}

fn tree(random: &mut Random, value: &mut Value, depth: usize) {
    let stop = depth > 12 || random.below(4) == 0;
    match value {
        Value::Array(items) if !stop && !items.is_empty() => {
            let at = random.below(items.len());
            match random.below(8) {
                0 => drop(items.remove(at)),
                1 => items.push(items[at].clone()),
                _ => tree(random, &mut items[at], depth + 1),
            }
        }
        Value::Object(map) if !stop && !map.is_empty() => {
            let at = random.below(map.len());
            let key = map.keys().nth(at).cloned().unwrap_or_default();
            match random.below(8) {
                0 => drop(map.remove(&key)),
                1 => {
                    let copy = map[&key].clone();
                    map.insert(random.one(&PIECES).to_string() + &key, copy);
                }
                _ => {
                    if let Some(inner) = map.get_mut(&key) {
                        tree(random, inner, depth + 1);
                    }
                }
            }
        }
        _ => *value = leaf(random, value),
    }
}

fn leaf(random: &mut Random, old: &Value) -> Value {
    match random.below(9) {
        0 => Value::Null,
        1 => random.below(2).eq(&0).into(),
        2 => serde_json::from_str::<Value>(random.one::<&str>(&NUMBERS)).unwrap_or(Value::Null),
        3 => (*random.one(&EDGES)).into(),
        4 => random.one(&PIECES).repeat(1 + random.below(3)).into(),
        5 => Value::Array(vec![]),
        6 => Value::Array(vec![old.clone(); 1 + random.below(3)]),
        7 => serde_json::json!({"a": old}),
        _ => match old.as_str() {
            Some(text) => {
                let mut bytes_of = text.as_bytes().to_vec();
                text_of(random, &mut bytes_of);
                String::from_utf8_lossy(&bytes_of).into_owned().into()
            }
            None => old.to_string().into(),
        },
    }
}

fn text_of(random: &mut Random, input: &mut Vec<u8>) {
    let copy = input.clone();
    bytes(random, input, &copy);
}

/// Changes a protobuf message field by field, so that the lengths around a change stay right; sometimes as bytes.
pub fn protobuf(random: &mut Random, input: &mut Vec<u8>, other: &[u8]) {
    if random.below(3) == 0 {
        return bytes(random, input, other);
    }
    let mut fields = fields(input);
    if fields.is_empty() {
        return bytes(random, input, other);
    }
    let at = random.below(fields.len());
    match random.below(6) {
        0 => drop(fields.remove(at)),
        1 => fields.insert(at, fields[at].clone()),
        2 => fields[at].0 ^= 1 << random.below(7),
        _ => {
            let (key, body) = &mut fields[at];
            if *key & 7 == 2 && random.below(2) == 0 {
                protobuf(random, body, &[]);
            } else {
                bytes(random, body, &[]);
            }
        }
    }
    *input = fields.iter().flat_map(|(key, body)| field(*key, body)).collect();
}

/// (key, body) of each field, as far as the message can be read.
fn fields(mut input: &[u8]) -> Vec<(u64, Vec<u8>)> {
    let mut out = vec![];
    while let Some((key, rest)) = varint(input) {
        let (body, rest) = match key & 7 {
            0 => match varint(rest) {
                Some((_, after)) => rest.split_at(rest.len() - after.len()),
                None => break,
            },
            2 => match varint(rest) {
                Some((n, after)) if n <= after.len() as u64 => after.split_at(n as usize),
                _ => break,
            },
            5 if rest.len() >= 4 => rest.split_at(4),
            _ => break,
        };
        out.push((key, body.to_vec()));
        input = rest;
    }
    out
}

fn varint(input: &[u8]) -> Option<(u64, &[u8])> {
    let end = input.iter().take(10).position(|b| b & 0x80 == 0)?;
    let value = input[..=end].iter().rev().fold(0u64, |n, b| n << 7 | u64::from(b & 0x7f));
    Some((value, &input[end + 1..]))
}

/// A field's bytes.
pub fn field(key: u64, body: &[u8]) -> Vec<u8> {
    let mut out = vec![];
    let mut put = |mut n: u64| {
        while n >= 0x80 {
            out.push(n as u8 | 0x80);
            n >>= 7;
        }
        out.push(n as u8);
    };
    put(key);
    if key & 7 == 2 {
        put(body.len() as u64);
    }
    out.extend(body);
    out
}
