//! Chinese words as jieba cuts them: the likeliest path through a dictionary of frequencies, new words by a hidden Markov model.
use std::{
    io::BufReader,
    sync::{Arc, LazyLock},
};

use anyhow::{Result, anyhow};
use jieba_rs::Jieba;

/// Words and frequencies of jieba 0.42.1 (assets/README.md).
const WORDS: &[u8] = include_bytes!("../../../assets/jieba/dict.txt.zst");

/// jieba with its own dictionary; read once for all.
static JIEBA: LazyLock<Result<Arc<Jieba>, String>> = LazyLock::new(|| {
    let words = zstd::stream::read::Decoder::with_buffer(WORDS).map_err(|e| e.to_string())?;
    Jieba::with_dict(&mut BufReader::new(words)).map(Arc::new).map_err(|e| e.to_string())
});

/// jieba's words.
pub struct ChineseWords {
    jieba: Arc<Jieba>,
}

impl ChineseWords {
    /// With the dictionary that is part of the program.
    ///
    /// # Errors
    /// None that outside data can cause.
    pub fn open() -> Result<ChineseWords> {
        let jieba =
            JIEBA.as_ref().map_err(|e| anyhow!("the built-in dictionary of Chinese words: {e}"))?.clone();
        Ok(ChineseWords { jieba })
    }

    /// The words of `text`; a space is a word of its own.
    pub fn words(&self, text: &str) -> Vec<String> {
        self.jieba.cut(text, true).into_iter().map(|token| token.word.to_string()).collect()
    }
}
