#!/usr/bin/env python3
"""Checks that what sdrrl writes loads elsewhere and means the same: an adapter in peft, with its base given and by its folder alone, a merged model in transformers.

python scripts/check_export.py MODEL ADAPTER [SDRRL]: log-likelihoods of a few texts by `sdrrl eval` against those of peft and transformers.
pip install torch transformers peft; MODEL is a Hugging Face directory."""
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

TEXTS = ["What is the job of Palal?", "El trabajo de Palal es sastre.", "The quick brown fox jumps over the lazy dog.",
         "Translate from English to Spanish: I see the harbour and a duck."]


def ours(sdrrl, model, adapter, work):
    (work / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    (work / "tasks.toml").write_text(f'[[tasks]]\nname = "t"\nkind = "perplexity"\nlanguage = "en"\nfile = "{work}/texts.txt"\n')
    out = work / ("adapter" if adapter else "merged-eval")
    command = [sdrrl, "eval", "--model", str(model), "--tasks", str(work / "tasks.toml"), "--out", str(out)]
    subprocess.run(command + (["--adapter", str(adapter)] if adapter else []), check=True, stdout=subprocess.DEVNULL)
    return [json.loads(line)["log_likelihoods"][0] for line in (out / "t" / "samples.jsonl").open()]


def theirs(model, tokenizer):
    found = []
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        with torch.no_grad():
            logits = model(ids).logits[0].log_softmax(-1)
        found.append(logits[:-1].gather(1, ids[0, 1:, None]).sum().item())
    return found


def main():
    model, adapter = Path(sys.argv[1]), Path(sys.argv[2])
    sdrrl = sys.argv[3] if len(sys.argv) > 3 else "target/release/sdrrl"
    tokenizer = AutoTokenizer.from_pretrained(model)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with_peft = theirs(PeftModel.from_pretrained(base, adapter).eval(), tokenizer)
    alone = theirs(AutoPeftModelForCausalLM.from_pretrained(adapter, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(adapter))
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        own = ours(sdrrl, model, adapter, work)
        subprocess.run([sdrrl, "merge", "--model", str(model), "--adapter", str(adapter), "--out", str(work / "merged"), "--dtype", "f32"], check=True)
        merged = theirs(AutoModelForCausalLM.from_pretrained(work / "merged", dtype=torch.float32).eval(), tokenizer)
    for text, *x in zip(TEXTS, own, with_peft, alone, merged):
        print(f"{x[0]:12.5f} sdrrl {x[1]:12.5f} peft {x[2]:12.5f} peft, by the folder {x[3]:12.5f} transformers, merged   {text}")
    worst = max(abs(a - b) / abs(a) for others in (with_peft, alone, merged) for a, b in zip(own, others))
    print(f"largest relative difference {worst:.1e}")
    sys.exit(worst > 1e-4)


main()
