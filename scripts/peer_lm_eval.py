#!/usr/bin/env python3
"""The peer of benches/multiple_choice.rs: python scripts/peer_lm_eval.py f32|bf16 BATCH QUESTIONS OUT. Prints one JSON line.

QUESTIONS has {"prompt", "choices"} a line; OUT gets the letter of the likeliest choice and all log-likelihoods. lm-eval's own model class
over transformers computes them. pip install torch transformers gguf lm_eval; scripts/get_assets.sh brings the model."""
import json
import logging
import os
import resource
import sys
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer

DIR, FILE = Path("assets/downloads"), "SmolLM2-135M-Instruct.Q4_1.gguf"


def main():
    dtype, batch, questions, out = sys.argv[1:5]
    logging.disable(logging.WARNING)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[dtype]
    model = AutoModelForCausalLM.from_pretrained(DIR, gguf_file=FILE, dtype=dtype, attn_implementation="sdpa").eval()
    lm = HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(DIR, gguf_file=FILE), batch_size=int(batch))
    rows = [json.loads(line) for line in Path(questions).read_text().splitlines()]

    def run(rows):
        asked = [Instance("loglikelihood", {}, (r["prompt"], c), 0) for r in rows for c in r["choices"]]
        found = iter(lm.loglikelihood(asked, disable_tqdm=True))
        return [[next(found)[0] for _ in r["choices"]] for r in rows]

    run(rows[:4])
    start = time.perf_counter()
    scores = run(rows)
    seconds = time.perf_counter() - start
    # Of equal ones the first, as lm-eval's argmax.
    Path(out).write_text("".join(" ".join(["ABCDEFGHIJ"[max(range(len(s)), key=lambda i: (s[i], -i))], *map(repr, s)]) + "\n" for s in scores))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"rows": len(rows) / seconds, "peak_mib": peak}))


main()
