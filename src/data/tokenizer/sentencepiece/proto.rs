//! What is needed of `ModelProto`: pieces, the model's type, the character map and how spaces are treated.
use anyhow::{Context, Result, bail, ensure};

/// `TrainerSpec.model_type` UNIGRAM.
pub const UNIGRAM: u64 = 1;
/// BPE.
pub const BPE: u64 = 2;

/// `SentencePiece.Type`: what a piece is for; others are told apart nowhere.
pub const NORMAL: u64 = 1;
pub const UNKNOWN: u64 = 2;
pub const USER_DEFINED: u64 = 4;
pub const UNUSED: u64 = 5;

/// One piece of the vocabulary.
pub struct Piece {
    pub text: String,
    pub score: f32,
    pub kind: u64,
}

/// The parsed file.
pub struct Model {
    pub pieces: Vec<Piece>,
    pub kind: u64,
    pub charsmap: Vec<u8>,
    /// Characters without a piece become pieces of their bytes.
    pub byte_fallback: bool,
    /// The space that stands before each text stands behind it.
    pub space_behind: bool,
    /// Texts get a space before them.
    pub add_dummy_prefix: bool,
    /// Spaces at both ends, and all but one in a row, are dropped.
    pub remove_extra_whitespaces: bool,
    /// Spaces are written ▁.
    pub escape_whitespaces: bool,
}

impl Default for Model {
    /// What the format says of absent fields.
    fn default() -> Model {
        Model {
            pieces: vec![],
            kind: UNIGRAM,
            charsmap: vec![],
            byte_fallback: false,
            space_behind: false,
            add_dummy_prefix: true,
            remove_extra_whitespaces: true,
            escape_whitespaces: true,
        }
    }
}

/// A field's value.
enum Field<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    Fixed32([u8; 4]),
    Fixed64,
}

struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Result<u64> {
        let mut value = 0u64;
        for i in 0..10 {
            let (&byte, rest) = self.0.split_first().context("it ends inside a number")?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f).checked_shl(7 * i).unwrap_or(0);
            if byte < 0x80 {
                return Ok(value);
            }
        }
        bail!("a number of more than ten bytes")
    }

    fn take(&mut self, n: u64) -> Result<&'a [u8]> {
        let n = usize::try_from(n).ok().filter(|&n| n <= self.0.len()).context("a field leaves the file")?;
        let (head, rest) = self.0.split_at(n);
        self.0 = rest;
        Ok(head)
    }

    /// The next field's number and value, or `None` at the end.
    fn next(&mut self) -> Result<Option<(u64, Field<'a>)>> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Field::Varint(self.varint()?),
            1 => {
                self.take(8)?;
                Field::Fixed64
            }
            2 => {
                let n = self.varint()?;
                Field::Bytes(self.take(n)?)
            }
            5 => {
                let b = self.take(4)?;
                Field::Fixed32([b[0], b[1], b[2], b[3]])
            }
            other => bail!("wire type {other} does not occur in SentencePiece models"),
        };
        Ok(Some((key >> 3, value)))
    }
}

impl Model {
    pub fn parse(bytes: &[u8]) -> Result<Model> {
        let mut model = Model::default();
        let mut fields = Fields(bytes);
        while let Some((number, value)) = fields.next()? {
            let Field::Bytes(inner) = value else { continue };
            match number {
                1 => {
                    model.pieces.push(piece(inner).with_context(|| format!("piece {}", model.pieces.len()))?)
                }
                2 => {
                    let mut spec = Fields(inner);
                    while let Some((number, value)) = spec.next()? {
                        match (number, value) {
                            (3, Field::Varint(kind)) => model.kind = kind,
                            (24, Field::Varint(on)) => model.space_behind = on != 0,
                            (35, Field::Varint(on)) => model.byte_fallback = on != 0,
                            _ => {}
                        }
                    }
                }
                3 => {
                    let mut spec = Fields(inner);
                    while let Some((number, value)) = spec.next()? {
                        match (number, value) {
                            (2, Field::Bytes(map)) => model.charsmap = map.to_vec(),
                            (3, Field::Varint(on)) => model.add_dummy_prefix = on != 0,
                            (4, Field::Varint(on)) => model.remove_extra_whitespaces = on != 0,
                            (5, Field::Varint(on)) => model.escape_whitespaces = on != 0,
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(model)
    }
}

fn piece(bytes: &[u8]) -> Result<Piece> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: NORMAL };
    let mut fields = Fields(bytes);
    while let Some((number, value)) = fields.next()? {
        match (number, value) {
            (1, Field::Bytes(text)) => {
                piece.text = String::from_utf8(text.to_vec()).context("it is not UTF-8")?
            }
            (2, Field::Fixed32(score)) => piece.score = f32::from_le_bytes(score),
            (3, Field::Varint(kind)) => piece.kind = kind,
            _ => {}
        }
    }
    ensure!(!piece.text.is_empty() && piece.score.is_finite(), "it has no text or no finite score");
    Ok(piece)
}
