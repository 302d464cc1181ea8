//! The compiled files of a MeCab dictionary, mapped and read in place. All numbers are little-endian.
use std::{
    io::Read,
    path::{Path, PathBuf},
};

use crate::data::files::FileContext;
use anyhow::{Context, Result, ensure};

use crate::data::map::{Map, map_path};

/// `sys.dic` begins with its size XOR this.
const MAGIC: u32 = 0xef71_8f77;
const VERSION: u32 = 102;
const HEADER: usize = 72;
const TOKEN: usize = 16;

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// One reading of a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MecabToken {
    /// Its class as seen from the word before.
    pub left: u16,
    /// Its class as seen from the word behind.
    pub right: u16,
    /// Number of its part of speech.
    pub part_of_speech: u16,
    /// The dearer, the rarer.
    pub cost: i16,
}

/// Words and their readings: a double array (Aoe 1989) over bytes, then tokens of 16 bytes, then features.
pub struct MecabDictionary {
    map: Map,
    path: PathBuf,
    words: usize,
    /// First byte of the tokens; the array lies before them.
    tokens: usize,
    /// First byte behind the tokens.
    end: usize,
}

impl MecabDictionary {
    /// Opens `sys.dic` or `unk.dic`.
    pub fn open(path: &Path) -> Result<MecabDictionary> {
        let map = map_path(path)
            .with_context(|| format!("{} is part of a compiled MeCab dictionary", path.display()))?;
        let field = |i: usize| u32_at(&map, 4 * i).map(|x| x as usize);
        let fields = (|| Some((field(0)?, field(1)?, field(3)?, field(6)?, field(7)?, field(8)?)))();
        let (magic, version, words, array, tokens, features) =
            fields.with_context(|| format!("{}: {} bytes are no dictionary", path.display(), map.len()))?;
        ensure!(
            magic ^ MAGIC as usize == map.len(),
            "{}: not a compiled MeCab dictionary, or cut off: its first number says {} bytes, it has {}",
            path.display(),
            magic ^ MAGIC as usize,
            map.len()
        );
        ensure!(version == VERSION as usize, "{}: version {version}, expected {VERSION}", path.display());
        ensure!(
            HEADER + array + tokens + features == map.len() && array % 8 == 0 && tokens % TOKEN == 0,
            "{}: its parts ({array}, {tokens} and {features} bytes) do not fill its {} bytes",
            path.display(),
            map.len()
        );
        let charset: String =
            map[40..HEADER].iter().take_while(|b| **b != 0).map(|b| char::from(*b)).collect();
        ensure!(
            matches!(charset.to_lowercase().as_str(), "utf8" | "utf-8" | "utf_8"),
            "{}: its charset is {charset:?}, expected utf-8: compile it with `mecab-dict-index -t utf-8`",
            path.display()
        );
        let start = HEADER + array;
        Ok(MecabDictionary { words, tokens: start, end: start + tokens, path: path.to_path_buf(), map })
    }

    /// Words.
    pub fn len(&self) -> usize {
        self.words
    }

    /// Refuses tokens whose classes the matrix does not have.
    pub fn check(&self, connections: &Connections) -> Result<()> {
        for (i, token) in self.map[self.tokens..self.end].chunks_exact(TOKEN).enumerate() {
            let (left, right) = (u16_at(token, 0).unwrap_or(0), u16_at(token, 2).unwrap_or(0));
            ensure!(
                usize::from(right) < connections.rights && usize::from(left) < connections.lefts,
                "{}: word {i} has classes {left} and {right}, but matrix.bin has {} and {}: the files belong to different dictionaries",
                self.path.display(),
                connections.lefts,
                connections.rights
            );
        }
        Ok(())
    }

    /// Base and check of a unit of the array.
    fn unit(&self, at: u32) -> Option<(i32, u32)> {
        let array = self.map.get(HEADER..self.tokens)?;
        let at = 8 * at as usize;
        Some((u32_at(array, at)? as i32, u32_at(array, at + 4)?))
    }

    /// The value at the node with this base, if a key ends there.
    fn value(&self, base: u32) -> Option<u32> {
        let (value, check) = self.unit(base)?;
        (check == base && value < 0).then(|| (-(i64::from(value)) - 1) as u32)
    }

    fn step(&self, base: u32, byte: u8) -> Option<u32> {
        let (next, check) = self.unit(base.checked_add(u32::from(byte) + 1)?)?;
        (check == base).then_some(next as u32)
    }

    fn tokens_of(&self, value: u32) -> impl Iterator<Item = MecabToken> {
        let (first, count) = ((value >> 8) as usize, (value & 0xff) as usize);
        (first..first + count).map_while(|i| {
            let all = self.map.get(self.tokens..self.end)?;
            let token = all.get(TOKEN * i..TOKEN * (i + 1))?;
            Some(MecabToken {
                left: u16_at(token, 0)?,
                right: u16_at(token, 2)?,
                part_of_speech: u16_at(token, 4)?,
                cost: u16_at(token, 6)? as i16,
            })
        })
    }

    /// Every token of every word that `text` begins with, shortest first: length in bytes, token.
    pub fn prefixes(&self, text: &[u8], each: &mut impl FnMut(usize, MecabToken)) {
        let Some((root, _)) = self.unit(0) else { return };
        let mut base = root as u32;
        for length in 0..=text.len() {
            if let Some(value) = self.value(base).filter(|_| length > 0) {
                self.tokens_of(value).for_each(|token| each(length, token));
            }
            let Some(next) = text.get(length).and_then(|b| self.step(base, *b)) else { return };
            base = next;
        }
    }

    /// The tokens of a word.
    pub fn exactly(&self, word: &[u8]) -> Vec<MecabToken> {
        let mut out = vec![];
        self.prefixes(word, &mut |length, token| out.extend((length == word.len()).then_some(token)));
        out
    }
}

/// `matrix.bin`: what it costs that one class follows another.
pub struct Connections {
    map: Map,
    /// Classes of a word as seen from behind.
    rights: usize,
    /// Classes of a word as seen from before.
    lefts: usize,
}

impl Connections {
    /// Opens `matrix.bin`.
    pub fn open(path: &Path) -> Result<Connections> {
        let map = map_path(path)?;
        let size = |at| u16_at(&map, at).map(usize::from);
        let (rights, lefts) = size(0)
            .zip(size(2))
            .with_context(|| format!("{}: {} bytes are no matrix", path.display(), map.len()))?;
        ensure!(
            4 + 2 * rights * lefts == map.len() && rights * lefts > 0,
            "{}: {rights} x {lefts} costs do not fill its {} bytes",
            path.display(),
            map.len()
        );
        Ok(Connections { map, rights, lefts })
    }

    /// Cost of a word whose left class is `left` behind one whose right class is `right`.
    pub fn cost(&self, right: u16, left: u16) -> i64 {
        let at = usize::from(right) + self.rights * usize::from(left);
        u16_at(&self.map, 4 + 2 * at).map_or(0, |c| i64::from(c as i16))
    }
}

/// What is known of a character.
#[derive(Clone, Copy, Debug)]
pub struct Category {
    /// One bit for each category it belongs to.
    kinds: u32,
    /// Its first category.
    pub number: usize,
    /// Unknown words of so many characters at most are tried.
    pub length: usize,
    /// An unknown word of all following characters of its kind is tried.
    pub groups: bool,
    /// Unknown words are tried even where the dictionary has one.
    pub always: bool,
}

impl Category {
    /// Whether the two share a category.
    pub fn is_kind_of(self, other: Category) -> bool {
        self.kinds & other.kinds != 0
    }
}

/// `char.bin`: the category of each character of the Basic Multilingual Plane.
pub struct CharCategories {
    map: Map,
    count: usize,
}

const MAPPED: usize = 0xffff;

impl CharCategories {
    /// Opens `char.bin`.
    pub fn open(path: &Path) -> Result<CharCategories> {
        let map = map_path(path)?;
        let count = u32_at(&map, 0).map_or(0, |n| n as usize);
        ensure!(
            (1..=18).contains(&count) && 4 + 32 * count + 4 * MAPPED == map.len(),
            "{}: not the compiled categories of a MeCab dictionary ({count} categories, {} bytes)",
            path.display(),
            map.len()
        );
        Ok(CharCategories { map, count })
    }

    /// By number.
    pub fn names(&self) -> impl Iterator<Item = String> {
        self.map[4..4 + 32 * self.count]
            .chunks_exact(32)
            .map(|name| name.iter().take_while(|b| **b != 0).map(|b| char::from(*b)).collect())
    }

    fn at(&self, code: usize) -> Category {
        let code = if code < MAPPED { code } else { 0 };
        let bits = u32_at(&self.map, 4 + 32 * self.count + 4 * code).unwrap_or(0);
        Category {
            kinds: bits & 0x3_ffff,
            number: (bits >> 18 & 0xff) as usize,
            length: (bits >> 26 & 0xf) as usize,
            groups: bits >> 30 & 1 == 1,
            always: bits >> 31 == 1,
        }
    }

    /// Of the space.
    pub fn space(&self) -> Category {
        self.at(usize::from(b' '))
    }

    /// Of the first character of `text`, and the character's length in bytes. Characters beyond 16 bits count as U+0000.
    pub fn of(&self, text: &[u8]) -> (Category, usize) {
        let bits = |b: &u8| usize::from(b & 0x3f);
        let (code, width) = match text {
            [a, ..] if *a < 0x80 => (usize::from(*a), 1),
            [a, b, ..] if a & 0xe0 == 0xc0 => (usize::from(a & 0x1f) << 6 | bits(b), 2),
            [a, b, c, ..] if a & 0xf0 == 0xe0 => (usize::from(a & 0xf) << 12 | bits(b) << 6 | bits(c), 3),
            [a, _, _, _, ..] if a & 0xf8 == 0xf0 => (0, 4),
            _ => (0, 1),
        };
        (self.at(code), width)
    }

    /// Bytes and characters at the start of `text` that are each of a kind with the one before, `first` before them all.
    pub fn run(&self, first: Category, text: &[u8]) -> (usize, usize) {
        let (mut before, mut at, mut chars) = (first, 0, 0);
        while at < text.len() {
            let (category, width) = self.of(&text[at..]);
            if !before.is_kind_of(category) {
                break;
            }
            (before, at, chars) = (category, at + width, chars + 1);
        }
        (at, chars)
    }
}

/// What `dicrc` sets of what matters here. (MeCab's own default for `max-grouping-size` goes before what stands there.)
pub struct Settings {
    /// Part of speech, cost of a space before it (MeCab-ko).
    penalties: Vec<(u16, i64)>,
}

impl Settings {
    /// Reads `dicrc`; without the file all is as MeCab has it by default.
    pub fn read(path: &Path) -> Result<Settings> {
        let mut out = Settings { penalties: vec![] };
        if !path.exists() {
            return Ok(out);
        }
        // It is a short list of settings; what stands behind this many bytes is none.
        let mut bytes = vec![];
        std::fs::File::open(path).and_then(|f| f.take(1 << 20).read_to_end(&mut bytes)).reading(path)?;
        let text = String::from_utf8_lossy(&bytes);
        for line in text.lines().map(str::trim).filter(|l| !l.starts_with([';', '#'])) {
            let Some((key, value)) = line.split_once('=') else { continue };
            if key.trim() != "left-space-penalty-factor" {
                continue;
            }
            let numbers: Vec<i64> = value
                .split(',')
                .map(|x| x.trim().parse::<i32>().map(i64::from))
                .collect::<Result<_, _>>()
                .with_context(|| format!("{}: {line:?} is not of whole numbers", path.display()))?;
            let pair = |p: &[i64]| Some((u16::try_from(p[0]).ok()?, p[1]));
            out.penalties = numbers.chunks_exact(2).filter_map(pair).collect();
        }
        Ok(out)
    }

    /// Cost of a space before a word of this part of speech.
    pub fn space_penalty(&self, part_of_speech: u16) -> i64 {
        self.penalties.iter().find(|p| p.0 == part_of_speech).map_or(0, |p| p.1)
    }
}
