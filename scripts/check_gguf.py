#!/usr/bin/env python3
"""Checks the GGUF files of `sdrrl quantize` against llama.cpp: the same types and bytes as its own quantisation of the F32 file, and the same greedy tokens, with an adapter too.

python scripts/check_gguf.py MODEL [ADAPTER] [--sdrrl PROGRAM]: MODEL is a Hugging Face directory, ADAPTER a LoRA adapter of it (PEFT).
pip install llama-cpp-python gguf numpy"""
import argparse
import ctypes
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import llama_cpp
import numpy as np
from gguf import GGUFReader

TYPES = {"F16": 1, "BF16": 32, "Q8_0": 7, "Q6_K": 18, "Q5_K_M": 17, "Q5_K_S": 16, "Q4_K_M": 15, "Q4_K_S": 14}
TEXTS = ["What is the job of Palal?", "El trabajo de Palal es", "The quick brown fox jumps over the lazy dog.", "Translate from English to Spanish: I see the harbour and a duck."]
TOKENS = 24


@llama_cpp.llama_log_callback
def quiet(_level, _text, _data):
    pass


def quantized_by_llama(source, to, kind):
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = TYPES[kind], 2
    began = time.time()
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(to).encode(), ctypes.byref(params)) == 0
    return time.time() - began


def tensors(path):
    return {t.name: (t.tensor_type.name, t.data.view(np.uint8).reshape(-1)) for t in GGUFReader(path).tensors}


def compare(ours, theirs):
    """Tensors of another type, and of other bytes."""
    a, b = tensors(ours), tensors(theirs)
    assert a.keys() == b.keys(), a.keys() ^ b.keys()
    types = [name for name in a if a[name][0] != b[name][0]]
    return types, [name for name in a if name not in types and not np.array_equal(a[name][1], b[name][1])]


def greedy_by_llama(path, lora=None):
    model = llama_cpp.Llama(str(path), n_ctx=256, lora_path=lora and str(lora), verbose=False, n_threads=2, logits_all=False)
    stops = {i for i in range(model.n_vocab()) if llama_cpp.llama_vocab_is_eog(model._model.vocab, i)}
    answers = []
    for text in TEXTS:
        model.reset()
        model.eval(model.tokenize(text.encode(), add_bos=False, special=False))
        ids = []
        while len(ids) < TOKENS:
            token = int(np.argmax(np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(model._ctx.ctx, -1), shape=(model.n_vocab(),))))
            if token in stops:
                break
            ids.append(token)
            model.eval([token])
        answers.append(ids)
    return answers


def greedy_by_sdrrl(sdrrl, model, work, *more):
    (work / "p.jsonl").write_text("".join(json.dumps({"instruction": t, "output": ""}) + "\n" for t in TEXTS))
    command = [sdrrl, "generate", "--model", str(model), "--prompts", str(work / "p.jsonl"), "--template", "plain", "--max-new-tokens", str(TOKENS), "--temperature", "0"]
    out = subprocess.run([*command, "--out", "-", *more], check=True, capture_output=True, text=True).stdout
    rows = [json.loads(line)["answer"] for line in out.splitlines()]
    return [row.get("ids", []) for row in rows]


def agree(what, ours, theirs):
    same = sum(a == b for a, b in zip(ours, theirs))
    print(f"{what}: {same} of {len(TEXTS)} answers have the same tokens ({sum(map(len, ours))} of ours)")
    for a, b in zip(ours, theirs):
        if a != b:
            print("  ", a, b)
    return same == len(TEXTS)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("adapter", type=Path, nargs="?")
    parser.add_argument("--sdrrl", default="target/release/sdrrl")
    args = parser.parse_args()
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    good = True
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)

        def quantize(kind, out, *more):
            began = time.time()
            subprocess.run([args.sdrrl, "quantize", "--model", str(args.model), "--type", kind, "--out", str(out), *more], check=True, stdout=subprocess.DEVNULL)
            return time.time() - began

        f32 = work / "F32.gguf"
        quantize("F32", f32)
        for kind in TYPES:
            ours, theirs = work / f"{kind}.gguf", work / f"{kind}-llama.gguf"
            own, other = quantize(kind, ours), quantized_by_llama(f32, theirs, kind)
            types, data = compare(ours, theirs)
            good &= not types and not data
            print(f"{kind}: {own:.2f} s, llama.cpp {other:.2f} s; tensors of other types {types}, of other bytes {data}")
            theirs.unlink()
        own = greedy_by_sdrrl(args.sdrrl, args.model, work)
        good &= agree("F32", own, greedy_by_llama(f32))
        # Done before the next, which some builds of llama.cpp do not survive.
        sys.stdout.flush()
        # llama.cpp rounds activations to 8 bits here, which may decide between two tokens.
        q4 = work / "Q4_K_M.gguf"
        agree("Q4_K_M", greedy_by_sdrrl(args.sdrrl, q4, work), greedy_by_llama(q4))
        if args.adapter:
            lora, merged = work / "lora.gguf", work / "merged"
            quantize("F32", lora, "--adapter", str(args.adapter))
            own = greedy_by_sdrrl(args.sdrrl, args.model, work, "--adapter", str(args.adapter))
            good &= agree("F32 with the adapter", own, greedy_by_llama(f32, lora))
            subprocess.run([args.sdrrl, "merge", "--model", str(args.model), "--adapter", str(args.adapter), "--out", str(merged), "--dtype", "f32"], check=True, stdout=subprocess.DEVNULL)
            args.model = merged
            quantize("F32", work / "merged.gguf")
            good &= agree("F32, merged", own, greedy_by_llama(work / "merged.gguf"))
    sys.exit(not good)


main()
