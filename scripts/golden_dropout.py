#!/usr/bin/env python3
"""Writes tests/golden/dropout/: losses and gradients of adapters with dropout, from PEFT with the masks put in by hand.

pip install torch==2.15.0 transformers==5.24.0 peft==0.21.2 safetensors numpy
Masks are those of src/ops/dropout.rs, written here from its description alone: Philox4x32-10 (checked against Random123's known answers), key and counter.
For MODEL.safetensors: {plain,rslora,dora}.{loss,grad.NAME}, at the adapters of ../models/MODEL/golden.safetensors; masks.LINEAR (tokens, 8): 1 where one of
the first 8 columns is kept.
"""
from pathlib import Path

import numpy as np
import peft
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"
RATE, SEED, STEP, IDS = 0.3, 0x123456789ABC, 7, [70000, 3, 5]
PURPOSE = 0x64726F70
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def philox(counter, key):
    c, k = [np.asarray(x, dtype=np.uint64) for x in counter], [key & 0xFFFFFFFF, key >> 32]
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        a, b = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [(b >> np.uint64(32)) ^ c[1] ^ np.uint64(k[0]), b & low, (a >> np.uint64(32)) ^ c[3] ^ np.uint64(k[1]), a & low]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


assert [int(x) for x in philox([0] * 4, 0)] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def mask(linear, document, length, columns):
    low, high, *_ = [int(x) for x in philox([STEP & 0xFFFFFFFF, STEP >> 32, linear, PURPOSE], SEED)]
    draws, positions = np.meshgrid(np.arange(columns), np.arange(length))
    words = philox([draws // 4, positions, np.full_like(draws, document), np.zeros_like(draws)], high << 32 | low)
    drawn = np.choose(draws % 4, words)
    return torch.from_numpy((drawn >= round(RATE * 2**32)).astype(np.float32))


class Masked(torch.nn.Module):
    def __init__(self, linear, place):
        super().__init__()
        self.linear, self.place = linear, place

    def forward(self, x):
        return x * mask(self.linear, self.place[0], x.shape[-2], x.shape[-1]) / (1 - RATE)


def run(name, variant, golden, options):
    model = AutoModelForCausalLM.from_pretrained(GOLDEN / "models" / name, attn_implementation="eager")
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", lora_dropout=RATE, **options))
    trained = {n.replace(".default", "").removesuffix(".weight"): p for n, p in model.named_parameters() if p.requires_grad}
    place = [None]
    with torch.no_grad():
        for n, p in trained.items():
            p.copy_(golden[f"lora.{variant}.param.{n}"])
    for path, module in model.named_modules():
        if hasattr(module, "lora_dropout"):
            layer, own = int(path.split(".layers.")[1].split(".")[0]), path.rsplit(".", 1)[1]
            module.lora_dropout["default"] = Masked(layer * len(MODULES) + MODULES.index(own), place)
    model.train()
    ends = golden["cu_seqlens"].tolist()
    tokens, weights = golden["tokens"].long(), golden["weights"]
    loss = 0
    for document, start, end in zip(IDS, ends, ends[1:]):
        place[0] = document
        logits = model(input_ids=tokens[None, start:end]).logits[0].float()
        targets = torch.roll(tokens[start:end], -1)
        loss = loss - (torch.log_softmax(logits, -1)[torch.arange(end - start), targets] * weights[start:end]).sum()
    loss = loss / weights.sum()
    loss.backward()
    return {f"{variant}.loss": loss.detach().reshape(1)} | {f"{variant}.grad.{n}": p.grad for n, p in trained.items()}


def main():
    (GOLDEN / "dropout").mkdir(exist_ok=True)
    for name in ("llama-tied", "llama-bias"):
        golden = load_file(GOLDEN / "models" / name / "golden.safetensors")
        out = {}
        for variant, options in {"plain": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True}}.items():
            out |= run(name, variant, golden, options)
        lengths = golden["cu_seqlens"].diff().tolist()
        for linear in (0, 13):
            out[f"masks.{linear}"] = torch.cat([mask(linear, d, n, 8) for d, n in zip(IDS, lengths)])
        versions = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
        save_file({k: v.contiguous() for k, v in out.items()}, GOLDEN / "dropout" / f"{name}.safetensors", metadata=versions)


if __name__ == "__main__":
    main()
