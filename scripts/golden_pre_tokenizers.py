#!/usr/bin/env python3
"""Writes tests/golden/tokenizer/{pre,gemma}.gguf and pre.json: byte-level BPE under every pre-tokeniser that a GGUF file may name, and Gemma's SentencePiece.

pip install tokenizers==0.23.3 sentencepiece==0.2.3 gguf==0.19.0
  pre.gguf     a small vocabulary whose merges cross spaces, digits and signs, so that it matters where text is cut; its last key is `tokenizer.ggml.pre`
  gemma.gguf   SentencePiece without a space in front, with byte fallback and symbols of its own
  pre.json     the ids of `tokenizers`, its steps as the models' own tokenizer.json have them where those are simple parts, and of `sentencepiece`"""
import json
import random
import tempfile
from pathlib import Path

import gguf
import sentencepiece
import tokenizers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, trainers
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

OUT = Path(__file__).resolve().parent.parent / "tests" / "golden" / "tokenizer"
TEXTS = ["Hello world, it's 12345 o'clock: I'LL be 07/2024!!", "  two  spaces \n\n and\tlines\r\n\r\nend  ", "camelCase XMLHttpRequest fooBAR_baz2 ÀÉî Straße",
         "日本語のテキスト。한국어 텍스트！ 中文，文本", "x=f(y); // code\n\t\treturn a[0]->b | c ^ ~d `e` $5 + <f>", "١٢٣٤ 1234567 89 ½ x²", "ελλάδα İstanbul हिन्दी ภาษาไทย e\u0301", " "]
ASCII_SIGNS = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""
L3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
OPEN = r"[^\r\n\p{L}\p{N}]?"


def split(regex):
    return Split(Regex(regex), "isolated")


def words(end, numbers):
    return OPEN + UPPER + "*" + LOWER + "+" + end + "|" + OPEN + UPPER + "+" + LOWER + "*" + end + "|" + numbers + REST


BYTES = ByteLevel(add_prefix_space=False, use_regex=False)
GPT2 = ByteLevel(add_prefix_space=False, use_regex=True)
GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
TAIL = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
# First and last letter of each range.
RANGES = [0x41, 0x5a, 0x61, 0x7a, 0xb5, 0xb5, 0xc0, 0xd6, 0xd8, 0xf6, 0xf8, 0x1ba, 0x1bc, 0x1bf, 0x1c4, 0x293, 0x295, 0x2af, 0x370, 0x373, 0x376, 0x376, 0x377, 0x377, 0x37b, 0x37d, 0x37f, 0x37f, 0x386, 0x386, 0x388, 0x38a, 0x38c, 0x38c, 0x38e, 0x3a1, 0x3a3, 0x3f5, 0x3f7, 0x481, 0x48a, 0x52f, 0x531, 0x556, 0x10a0, 0x10c5, 0x13a0, 0x13f5, 0x13f8, 0x13fd, 0x1c90, 0x1cba, 0x1cbd, 0x1cbf, 0x1d00, 0x1d2b, 0x1d6b, 0x1d77, 0x1d79, 0x1d9a, 0x1e00, 0x1f15, 0x1f18, 0x1f1d, 0x1f20, 0x1f45, 0x1f48, 0x1f4d, 0x1f50, 0x1f57, 0x1f59, 0x1f59, 0x1f5b, 0x1f5b, 0x1f5d, 0x1f5d, 0x1f5f, 0x1f7d, 0x1f80, 0x1fb4, 0x1fb6, 0x1fbc, 0x1fbe, 0x1fbe, 0x1fc2, 0x1fc4, 0x1fc6, 0x1fcc, 0x1fd0, 0x1fd3, 0x1fd6, 0x1fdb, 0x1fe0, 0x1fec, 0x1ff2, 0x1ff4, 0x1ff6, 0x1ffc, 0x2102, 0x2102, 0x2107, 0x2107, 0x210a, 0x2113, 0x2115, 0x2115, 0x2119, 0x211d, 0x2124, 0x2124, 0x2126, 0x2126, 0x2128, 0x2128, 0x212a, 0x212d, 0x212f, 0x2134, 0x2139, 0x2139, 0x213c, 0x213f, 0x2145, 0x2149, 0x214e, 0x214e, 0x2183, 0x2183, 0x2184, 0x2184, 0x2c00, 0x2c7b, 0x2c7e, 0x2ce4, 0x2ceb, 0x2cee, 0x2cf2, 0x2cf2, 0x2cf3, 0x2cf3, 0xa640, 0xa66d, 0xa680, 0xa69b, 0xa722, 0xa76f, 0xa771, 0xa787, 0xa78b, 0xa78e, 0xab70, 0xabbf, 0xfb00, 0xfb06, 0xfb13, 0xfb17, 0xff21, 0xff3a, 0xff41, 0xff5a, 0x10400, 0x1044f, 0x104b0, 0x104d3, 0x104d8, 0x104fb, 0x10c80, 0x10cb2, 0x10cc0, 0x10cf2, 0x118a0, 0x118df, 0x1e900, 0x1e943]
CASED = "[" + "".join(chr(a) + "-" + chr(b) for a, b in zip(RANGES[::2], RANGES[1::2])) + "]+"
PRE = {
    # Every cut before bytes become letters, as llama.cpp has it.
    "default": [split(r"[\p{P}\$\+<=>\^~\|]+"), split(GPT2_WORDS), split(r"\p{N}+"), split("[0-9][0-9][0-9]"), BYTES],
    "gpt-2": [GPT2],
    "llama-bpe": [split(L3), BYTES],
    "dbrx": [split(L3), BYTES],
    "qwen2": [split(L3.replace("{1,3}", "")), BYTES],
    "stablelm2": [split(L3.replace("{1,3}", "")), BYTES],
    "qwen35": [split(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"), BYTES],
    "tekken": [split(words("", r"\p{N}")), BYTES],
    "gpt-4o": [split(words(TAIL, r"\p{N}{1,3}")), BYTES],
    "tiny_aya": [split(r"\d{1,3}(?=(?:\d{3})*\b)"), split(words(TAIL, r"\p{N}{1,3}")), BYTES],
    "deepseek-llm": [split("[\r\n]"), split(r"\s?" + CASED), split(r"\s?[!-/:-~！-／：-～‘-‟　-。]+"), split(r"\s+$"), split("[一-龥ࠀ-一가-퟿]+"),
                     split(r"\p{N}+"), BYTES],
    "deepseek-coder": [split("[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"), split("[一-龥ࠀ-一가-퟿]+"), Digits(individual_digits=True), BYTES],
    "deepseek-v3": [split(r"\p{N}{1,3}"), split("[一-龥぀-ゟ゠-ヿ]+"),
                    split(ASCII_SIGNS + r"[A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"), BYTES],
    "falcon": [split(r"[\p{P}\$\+<=>\^~\|`]+"), GPT2, split("[0-9][0-9][0-9]")],
    "smollm": [Digits(individual_digits=True), GPT2],
    "starcoder": [Digits(individual_digits=True), GPT2],
    "bloom": [split(BLOOM), BYTES],
    "viking": [split(BLOOM), Digits(individual_digits=True), BYTES],
    "superbpe": [Digits(individual_digits=False), split(r"(?=(\d{3})+(?!\d))"), BYTES],
    "seed-coder": [split(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"), BYTES],
    "bailingmoe": [split(r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"), BYTES],
    "minicpm5": [split(r"\p{N}{1,3}"), split(L3.replace("{1,3}", "+")), BYTES],
}
WHOLE_WORDS = ("llama-bpe", "tekken", "minicpm5")


def corpus():
    r = random.Random(3)
    parts = TEXTS + ["the cat", " is", "1234", "2024", "it's", "I'LL", "we'll", "foo", "Bar", "   ", "\n\n", "!!", "...", "->", "日本", "한국", "中文", "ελλ", "हिन्दी", "e\u0301"]
    return ["".join(r.choice(parts) for _ in range(4)) for _ in range(300)]


def bpe():
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = BYTES
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(corpus(), trainers.BpeTrainer(vocab_size=620, max_token_length=9, show_progress=False, initial_alphabet=ByteLevel.alphabet()))
    vocab = sorted(tok.get_vocab().items(), key=lambda kv: kv[1])
    model = json.loads(tok.to_str())["model"]
    w = gguf.GGUFWriter(OUT / "pre.gguf", "llama")
    w.add_tokenizer_model("gpt2")
    w.add_token_list([t for t, _ in vocab])
    w.add_token_types([1] * len(vocab))
    w.add_token_merges([" ".join(m) if isinstance(m, list) else m for m in model["merges"]])
    w.add_tokenizer_pre("gpt-2")
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.close()
    out = {}
    for name, steps in PRE.items():
        model["ignore_merges"] = name in WHOLE_WORDS
        own = Tokenizer.from_str(json.dumps(json.loads(tok.to_str()) | {"model": model}))
        own.pre_tokenizer = Sequence(steps)
        if name == "qwen2":
            own.normalizer = normalizers.NFC()
        out[name] = [own.encode(t).ids for t in TEXTS]
    print(len({json.dumps(v) for v in out.values()}), "different of", len(out))
    return out


def gemma():
    symbols = ["<start_of_turn>", "<end_of_turn>", "\n\n", "▁▁", "▁▁▁▁"]
    with tempfile.TemporaryDirectory() as d:
        (Path(d) / "c.txt").write_text("\n".join(line.replace("\n", " ").replace("\r", " ") for line in corpus()))
        sentencepiece.SentencePieceTrainer.train(
            input=f"{d}/c.txt", model_prefix=f"{d}/m", vocab_size=520, model_type="bpe", byte_fallback=True, character_coverage=0.98, add_dummy_prefix=False,
            normalization_rule_name="identity", remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, split_digits=True,
            user_defined_symbols=symbols, pad_id=0, eos_id=1, bos_id=2, unk_id=3, minloglevel=2)
        sp = sentencepiece.SentencePieceProcessor(model_file=f"{d}/m.model")
    w = gguf.GGUFWriter(OUT / "gemma.gguf", "gemma2")
    w.add_tokenizer_model("llama")
    w.add_tokenizer_pre("default")
    n = sp.get_piece_size()
    pieces = [sp.id_to_piece(i) for i in range(n)]
    kind = lambda i: 2 if sp.is_unknown(i) else 3 if sp.is_control(i) or "turn>" in pieces[i] else 6 if sp.is_byte(i) else 4 if pieces[i] in symbols else 1
    w.add_token_list(pieces)
    w.add_token_scores([sp.get_score(i) for i in range(n)])
    w.add_token_types([kind(i) for i in range(n)])
    w.add_bos_token_id(2)
    w.add_eos_token_id(1)
    w.add_unk_token_id(3)
    w.add_pad_token_id(0)
    w.add_add_bos_token(True)
    w.add_add_space_prefix(False)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.close()
    return {"texts": [sp.encode(t) for t in TEXTS], "end": pieces.index("<end_of_turn>")}


def main():
    golden = {"versions": {"tokenizers": tokenizers.__version__, "sentencepiece": sentencepiece.__version__}, "texts": TEXTS, "pre": bpe(), "gemma": gemma()}
    (OUT / "pre.json").write_text(json.dumps(golden, ensure_ascii=False) + "\n")


main()
