#!/usr/bin/env python3
"""Writes tests/golden/metrics/spbleu/: SentencePiece's own pieces, and sacrebleu's BLEU of them, for small models in place of the published.

    golden_spbleu.py FLORES      a folder with test.LL and test.SYSTEM.LL (systems google and bergamot-tiny; es cs ja th)

pip install sacrebleu==2.6.0 sentencepiece protobuf. sacrebleu finds its models in a folder of ours, so that nothing is downloaded. Two models
are those of golden_sentencepiece.py; the others (identity normalisation) have what the format allows besides: pieces of bytes, user-defined and
unused pieces, a space behind the text, spaces kept. Run golden_systems.py first: the excerpts are its."""
import json
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

import sacrebleu
import sentencepiece
from sacrebleu.metrics import BLEU
from sacrebleu.tokenizers import tokenizer_spm
from sentencepiece import sentencepiece_model_pb2

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"
OUT = GOLDEN / "metrics" / "spbleu"
EXCERPT = GOLDEN / "metrics" / "flores"
TRAINED = {name: GOLDEN / "sentencepiece" / name / "sentencepiece.bpe.model" for name in ("nllb", "xlm-roberta")}
# Which small model stands in for which published one.
TOKENIZERS = {"spm": "xlm-roberta", "flores101": "xlm-roberta", "flores200": "nllb", "spBLEU-1K": "bytes"}
ODD = ["", " ", "\u3000 \t", "  two  spaces ", "ＡＢＣ１２３ ﬁne ①②", "ｶﾞｷﾞ ｶﾀｶﾅ", "e\u0301 o\u0302\u0323 n\u0303o", "\u0e19\u0e49\u0e33 \u0e19\u0e49\u0e4d\u0e32 กำ",
       "ក្រុម ស្រី", "각 \u1100\u1161\u11a8", "emoji 👍🏽👩‍👩‍👧 \u200b\u200d zero", "a\u0000b\u0007c\u0085d\u2028e", "ꙮꙮ ᚠᚢ ꙮa", "<s> </s> <unk> <pad> <0x41>",
       "▁ ▁▁a ▁", "[NAME]said[NAME] [NAME]", "free and equal equal and free", "aaaaaaaaaaaaaaaa", "½ ㎏ ﷺ ℃", "tail \u00a0"]


def fuzz(lines):
    """Pieces of all scripts, thrown together."""
    draw = random.Random(11)
    letters = sorted({c for line in lines for c in line} | set(" \u3000\u0300\u0301\u0e4d\u0e32\u200d①ｶﾞﬁ"))
    return ["".join(draw.choice(letters) for _ in range(draw.randrange(1, 40))) for _ in range(40)]


def train(name, kind, texts, unused=0, **options):
    with tempfile.TemporaryDirectory() as tmp:
        corpus = Path(tmp) / "corpus.txt"
        corpus.write_text("\n".join(texts) + "\n", encoding="utf-8")
        sentencepiece.SentencePieceTrainer.train(
            input=str(corpus), model_prefix=f"{tmp}/m", model_type=kind, vocab_size=600, hard_vocab_limit=False, num_threads=1, minloglevel=2,
            normalization_rule_name="identity", **options)
        model = sentencepiece_model_pb2.ModelProto.FromString(Path(f"{tmp}/m.model").read_bytes())
    normal = [p for p in model.pieces if p.type == p.NORMAL and len(p.piece) > 1]
    for piece in normal[:: unused or len(normal) + 1]:
        piece.type = piece.UNUSED
    path = OUT / f"{name}.model"
    path.write_bytes(model.SerializeToString())
    return path


def scores(tokenizer, folder, lines):
    metric, out = BLEU(tokenize=tokenizer), {}
    for language in ("es", "cs", "ja", "th"):
        read = lambda path: path.read_text(encoding="utf-8").split("\n")[:lines]
        reference = read(folder / f"test.{language}")
        for path in sorted(folder.glob(f"test.*.{language}")):
            out[path.name] = metric.corpus_score(read(path), [reference]).score
    return {"signature": str(metric.get_signature()), "scores": out}


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    lines = [line for language in ("es", "cs", "ja", "th") for line in (EXCERPT / f"test.{language}").read_text(encoding="utf-8").splitlines()]
    own = json.loads((GOLDEN / "sentencepiece" / "golden.json").read_text(encoding="utf-8"))["texts"]
    models = dict(TRAINED)
    models["bytes"] = train("bytes", "bpe", own, byte_fallback=True, character_coverage=0.98, user_defined_symbols=["[NAME]", "equal"], unused=3)
    models["suffix"] = train("suffix", "unigram", own, character_coverage=0.98, user_defined_symbols=["[NAME]", "equal"], unused=5,
                             treat_whitespace_as_suffix=True)
    models["spaces"] = train("spaces", "unigram", own, character_coverage=0.98, remove_extra_whitespaces=False, add_dummy_prefix=False)
    out = {"versions": {"sacrebleu": sacrebleu.__version__, "sentencepiece": sentencepiece.__version__}, "lines": lines,
           "odd": ODD + fuzz(lines + own), "pieces": {}, "bleu": {}, "devtest": {}}
    for name, path in models.items():
        sp = sentencepiece.SentencePieceProcessor(model_file=str(path))
        out["pieces"][name] = [sp.encode(text, out_type=str) for text in out["odd"]]
        if name in TRAINED:
            out["pieces"][name + " lines"] = [" ".join(sp.encode(line, out_type=str)) for line in lines]
    with tempfile.TemporaryDirectory() as tmp:
        tokenizer_spm.SACREBLEU_DIR = tmp
        os.mkdir(f"{tmp}/models")
        for tokenizer, model in TOKENIZERS.items():
            shutil.copy(models[model], Path(tmp) / "models" / os.path.basename(tokenizer_spm.SPM_MODELS[tokenizer]["url"]))
            out["bleu"][tokenizer] = {"model": str(models[model].relative_to(GOLDEN.parent.parent)), **scores(tokenizer, EXCERPT, 40)}
            out["devtest"][tokenizer] = scores(tokenizer, Path(sys.argv[1]), 1012)
    (OUT / "golden.json").write_text(json.dumps(out, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
