//! How byte-level tokenizers cut text before their merges, by the names that GGUF files have for it (`tokenizer.ggml.pre`).
//!
//! What a name means is a fact of llama.cpp (`llama-vocab.cpp`): expressions that cut one after the other what those before left, matches and the text between
//! them alike. Where llama.cpp writes an expression otherwise than the model's own tokenizer.json, because its engine lacks something, the model's own stands here.
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

/// GPT-2's: contractions, words, numbers and signs with the space before them.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Llama 3's: any sign may stand before a word, numbers in threes, line ends with what is before them.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen 2's: the same with single digits.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Mistral's Tekken: words are cut where capitals begin.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// OpenAI's o200k: the same with contractions, and numbers in threes.
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// DeepSeek's letters: those of scripts with two cases. By number, since some of them are others when they are composed.
const CASED: &str = r"\s?[A-Za-z\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-\x{293}\x{295}-\x{2AF}\x{370}-\x{373}\x{376}\x{377}\x{37B}-\x{37D}\x{37F}\x{386}\x{388}-\x{38A}\x{38C}\x{38E}-\x{3A1}\x{3A3}-\x{3F5}\x{3F7}-\x{481}\x{48A}-\x{52F}\x{531}-\x{556}\x{10A0}-\x{10C5}\x{13A0}-\x{13F5}\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}\x{1D79}-\x{1D9A}\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}\x{2102}\x{2107}\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124}\x{2126}\x{2128}\x{212A}-\x{212D}\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}\x{2145}-\x{2149}\x{214E}\x{2183}\x{2184}\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3}\x{A640}-\x{A66D}\x{A680}-\x{A69B}\x{A722}-\x{A76F}\x{A771}-\x{A787}\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A}\x{10400}-\x{1044F}\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF}\x{1E900}-\x{1E943}]+";
const CASED_SIGNS: &str = r"\s?[!-/:-~！-／：-～‘-‟　-。]+";
const EAST_ASIAN: &str = r"[一-龥ࠀ-一가-퟿]+";
/// DeepSeek V3's words.
const DEEPSEEK3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
const KANA: &str = r"[一-龥぀-ゟ゠-ヿ]+";
/// BLOOM's: whatever stands between spaces and ends of sentences.
const BLOOM: &str = r" ?[^(\s|.,!?…。，、।۔،)]+";
const DIGIT: &str = r"\p{N}";
const DIGITS: &str = r"\p{N}+";
const THREES: &str = r"\p{N}{1,3}";
const THREE: &str = "[0-9][0-9][0-9]";

/// What a name means.
struct Kind {
    names: &'static [&'static str],
    /// Applied one after the other.
    cuts: &'static [&'static str],
    /// A word that is a token is taken whole, whatever the merges say.
    ignore_merges: bool,
    /// Plain prompts begin with the begin token, unless the file says otherwise.
    add_bos: bool,
}

const fn kind(names: &'static [&'static str], cuts: &'static [&'static str]) -> Kind {
    Kind { names, cuts, ignore_merges: false, add_bos: false }
}

const KINDS: &[Kind] = &[
    // What files without a name get.
    kind(&["default"], &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, DIGITS, THREE]),
    Kind {
        ignore_merges: true,
        add_bos: true,
        ..kind(
            &[
                "llama-bpe",
                "llama3",
                "llama-v3",
                "falcon3",
                "falcon-h1",
                "pixtral",
                "midm-2.0",
                "lfm2",
                "jina-v5-nano",
            ],
            &[LLAMA3],
        )
    },
    kind(&["dbrx", "smaug-bpe", "chatglm-bpe", "glm4"], &[LLAMA3]),
    kind(
        &[
            "qwen2",
            "deepseek-r1-qwen",
            "megrez",
            "kormo",
            "f2llmv2",
            "stablelm2",
            "hunyuan",
            "solar-open",
            "grok-2",
        ],
        &[QWEN2],
    ),
    kind(
        &["qwen35"],
        &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
    ),
    Kind { ignore_merges: true, add_bos: true, ..kind(&["tekken"], &[TEKKEN]) },
    kind(&["gpt-4o", "llama4", "kanana2", "minimax-m2", "talkie"], &[GPT4O]),
    kind(&["tiny_aya", "cohere2moe"], &[r"\d{1,3}(?=(?:\d{3})*\b)", GPT4O]),
    kind(&["deepseek-llm"], &["[\r\n]", CASED, CASED_SIGNS, r"\s+$", EAST_ASIAN, DIGITS]),
    kind(&["deepseek-coder"], &["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", EAST_ASIAN, DIGIT]),
    kind(&["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"], &[THREES, KANA, DEEPSEEK3]),
    kind(&["falcon"], &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, THREE]),
    kind(
        &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"],
        &[DIGIT, GPT2],
    ),
    kind(
        &[
            "gpt-2",
            "gpt2",
            "phi-2",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "exaone4",
            "jina-es",
            "jina-de",
            "jina-v1-en",
            "jina-v2-es",
            "jina-v2-de",
            "jina-v2-code",
            "modern-bert",
            "roberta-bpe",
        ],
        &[GPT2],
    ),
    kind(&["poro-chat", "bloom", "gpt3-finnish"], &[BLOOM]),
    kind(&["viking"], &[BLOOM, DIGIT]),
    kind(&["superbpe"], &[DIGITS, r"(?=(\d{3})+(?!\d))"]),
    kind(
        &["seed-coder"],
        &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
    ),
    kind(
        &["bailingmoe", "bailingmoe2", "llada-moe"],
        &[
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
        ],
    ),
    Kind {
        ignore_merges: true,
        ..kind(
            &["minicpm5"],
            &[
                THREES,
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            ],
        )
    },
];

/// What is needed beside vocabulary and merges to rebuild a tokenizer.
pub(super) struct PreTokenizer {
    /// tokenizer.json's `normalizer`.
    pub normalizer: Value,
    /// tokenizer.json's `pre_tokenizer`.
    pub pre_tokenizer: Value,
    /// The model's `ignore_merges`.
    pub ignore_merges: bool,
    /// Whether plain prompts begin with the begin token where the file does not say.
    pub add_bos: bool,
}

/// What `name` means; the error lists the names.
pub(super) fn by_name(name: &str) -> Result<PreTokenizer> {
    let kind = KINDS.iter().find(|k| k.names.contains(&name)).with_context(|| {
        let mut names: Vec<&str> = KINDS.iter().flat_map(|k| k.names).copied().collect();
        names.sort();
        format!(
            "its pre-tokeniser is `{name}`, which is not known here: use the model's Hugging Face directory. Known are {}",
            names.join(", ")
        )
    })?;
    let cut = |regex: &&str| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
    let mut steps: Vec<Value> = kind.cuts.iter().map(cut).collect();
    steps.push(
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false}),
    );
    // Qwen's tokenizer.json composes characters first, which llama.cpp leaves out.
    let composed = name == "qwen2" || name == "deepseek-r1-qwen";
    Ok(PreTokenizer {
        normalizer: if composed { json!({"type": "NFC"}) } else { Value::Null },
        pre_tokenizer: json!({"type": "Sequence", "pretokenizers": steps}),
        ignore_merges: kind.ignore_merges,
        add_bos: kind.add_bos,
    })
}

/// The parts of a step of tokenizer.json that may be a sequence of steps; none for null.
pub(super) fn steps(part: &Value) -> Vec<&Value> {
    let lists = ["normalizers", "pretokenizers"].iter().find_map(|key| part[*key].as_array());
    match lists {
        Some(list) => list.iter().flat_map(steps).collect(),
        None if part.is_null() => vec![],
        None => vec![part],
    }
}

/// The expressions by which a byte-level tokenizer.json cuts; the error names the step that no name stands for.
fn cuts_of(json: &Value) -> Result<Vec<&str>> {
    let mut cuts = vec![];
    for step in steps(&json["pre_tokenizer"]) {
        let cut = match step["type"].as_str() {
            Some("Split") => {
                // Where the expression matches everything, the two are one.
                let isolated = [("Isolated", false), ("Removed", true)]
                    .iter()
                    .any(|(behaviour, invert)| step["behavior"] == *behaviour && step["invert"] == *invert);
                step["pattern"]["Regex"].as_str().filter(|_| isolated)
            }
            Some("Digits") => Some(if step["individual_digits"] == true { DIGIT } else { DIGITS }),
            Some("ByteLevel") if step["add_prefix_space"] == true => None,
            Some("ByteLevel") if step["use_regex"] == false => continue,
            Some("ByteLevel") => Some(GPT2),
            _ => None,
        };
        cuts.push(cut.with_context(|| {
            format!("its pre-tokeniser has the step {step}, which llama.cpp has no name for")
        })?);
    }
    Ok(cuts)
}

/// llama.cpp's name of what a byte-level tokenizer.json does before its merges: the inverse of [`by_name`].
///
/// # Errors
/// Steps that none of the names stands for.
pub(super) fn name_of(json: &Value) -> Result<&'static str> {
    let byte_level = steps(&json["pre_tokenizer"]).iter().any(|step| step["type"] == "ByteLevel");
    ensure!(
        byte_level,
        "its pre-tokeniser is not byte-level, and its model has no byte fallback: llama.cpp has no name for that"
    );
    let cuts = cuts_of(json)?;
    let whole_words = json["model"]["ignore_merges"] == true;
    let fits = KINDS.iter().filter(|k| k.cuts == cuts && k.ignore_merges == whole_words);
    let mut names = fits.flat_map(|k| k.names).copied();
    let same = |name: &&str| by_name(name).is_ok_and(|pre| pre.normalizer == json["normalizer"]);
    names.find(same).with_context(|| {
        format!(
            "llama.cpp has no name for its pre-tokeniser (normalizer {}, whole words {whole_words}, cuts {cuts:?}): a file with another name would cut text differently",
            json["normalizer"]
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_found_again_by_what_it_means() {
        for name in KINDS.iter().flat_map(|k| k.names) {
            let pre = by_name(name).unwrap();
            let json = json!({"normalizer": pre.normalizer, "pre_tokenizer": pre.pre_tokenizer, "model": {"ignore_merges": pre.ignore_merges}});
            let found = by_name(name_of(&json).unwrap()).unwrap();
            assert_eq!(
                (found.normalizer, found.pre_tokenizer, found.ignore_merges),
                (pre.normalizer, pre.pre_tokenizer, pre.ignore_merges),
                "{name}"
            );
        }
        let named = |steps: Value| {
            name_of(
                &json!({"normalizer": null, "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}, "model": {}}),
            )
        };
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": true});
        assert_eq!(named(json!([{"type": "Digits", "individual_digits": true}, bytes])).unwrap(), "smollm");
        assert_eq!(named(json!([bytes])).unwrap(), "gpt-2");
        let own =
            json!({"type": "Split", "pattern": {"Regex": "[abc]"}, "behavior": "Isolated", "invert": false});
        for (steps, what) in [
            (json!([own, bytes]), "[abc]"),
            (json!([{"type": "Punctuation", "behavior": "Contiguous"}, bytes]), "Punctuation"),
            (json!([{"type": "ByteLevel", "add_prefix_space": true, "use_regex": true}]), "add_prefix_space"),
            (json!([{"type": "Whitespace"}]), "not byte-level"),
        ] {
            let error = named(steps).unwrap_err().to_string();
            assert!(error.contains(what), "{what}: {error}");
        }
    }

    #[test]
    fn every_name_is_one_kind_and_every_expression_compiles() {
        let mut names: Vec<&str> = KINDS.iter().flat_map(|k| k.names).copied().collect();
        let all = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all, "a name stands twice");
        for name in names {
            let pre = by_name(name).unwrap();
            serde_json::from_value::<tokenizers::PreTokenizerWrapper>(pre.pre_tokenizer).unwrap();
        }
    }
}
