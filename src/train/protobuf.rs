//! Protocol buffers as they lie in a file: fields one after the other. As protobuf's own writers do, numbers that are 0 and empty texts are left out.

/// A message.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Message(pub Vec<u8>);

/// Wire types.
const VARINT: u32 = 0;
const FIXED64: u32 = 1;
const BYTES: u32 = 2;
const FIXED32: u32 = 5;

impl Message {
    /// A whole number.
    pub fn int(mut self, field: u32, x: u64) -> Message {
        if x != 0 {
            self.key(field, VARINT);
            self.varint(x);
        }
        self
    }

    /// A `double`.
    pub fn double(mut self, field: u32, x: f64) -> Message {
        self.key(field, FIXED64);
        self.0.extend(x.to_le_bytes());
        self
    }

    /// A `float`.
    pub fn float(mut self, field: u32, x: f32) -> Message {
        self.key(field, FIXED32);
        self.0.extend(x.to_le_bytes());
        self
    }

    /// A text.
    pub fn text(self, field: u32, text: &str) -> Message {
        if text.is_empty() { self } else { self.bytes(field, text.as_bytes()) }
    }

    /// A message in it, even an empty one.
    pub fn message(self, field: u32, inner: Message) -> Message {
        self.bytes(field, &inner.0)
    }

    fn bytes(mut self, field: u32, bytes: &[u8]) -> Message {
        self.key(field, BYTES);
        self.varint(bytes.len() as u64);
        self.0.extend(bytes);
        self
    }

    fn key(&mut self, field: u32, wire: u32) {
        self.varint((field << 3 | wire) as u64);
    }

    fn varint(&mut self, mut x: u64) {
        while x >= 128 {
            self.0.push(x as u8 | 128);
            x >>= 7;
        }
        self.0.push(x as u8);
    }
}
