#!/usr/bin/env python3
"""LoRA training of a random LLaMA against transformers + peft: losses and gradient norms of each step, the adapter after the last.

python scripts/peer_parity.py SDRRL [--shape llama-1b] [--dtype bf16] [--device cuda] [--steps 20] [--length 512] [--documents 8] [--out DIR]
Run from the repository's root (or a GPU bundle's). pip install torch transformers peft. Prints a table and one line of JSON; status 1 if parity fails.

bf16 has no exact answer: PyTorch runs in f32 and in the dtype, and this program must be no further from the f32 run than 1.5 times PyTorch's own
distance in that dtype (plus 1e-4). In f32 it must be within 1e-3 of PyTorch."""
import argparse
import json
import pathlib
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import time

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from peer_card import card, torch_device

LR, TARGETS = 1e-4, ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TOKENIZER = pathlib.Path("assets/quickstart/model")


def read_shard(path):
    """(tokens, weights) of each document; the layout stands at the head of src/data/token_shard.rs."""
    data = path.read_bytes()
    documents, tokens, _ = struct.unpack_from("<QQQ", data, 8)
    offsets = struct.unpack_from(f"<{documents + 1}Q", data, 32)
    at = 32 + 16 * (documents + 1)
    ids = struct.unpack_from(f"<{tokens}I", data, at)
    weights = struct.unpack_from(f"<{tokens}f", data, at + 4 * tokens)
    return [(ids[a:b], weights[a:b]) for a, b in zip(offsets, offsets[1:])]


def make_model(args, work):
    """A random model, an adapter whose B is not zero (so that A has gradients from the start), and packed documents."""
    shape = json.loads(pathlib.Path("benches/shapes.json").read_text())[args.shape]
    torch.manual_seed(1)
    with torch.device(torch_device(args.device)):
        model = LlamaForCausalLM._from_config(LlamaConfig(**shape, bos_token_id=1, eos_token_id=2), dtype=torch.bfloat16)
    model.save_pretrained(work / "model")
    for name in ["tokenizer.json", "tokenizer_config.json"]:
        shutil.copy(TOKENIZER / name, work / "model")
    lora = LoraConfig(r=16, lora_alpha=32, target_modules=TARGETS, task_type="CAUSAL_LM")
    adapted = get_peft_model(model, lora, autocast_adapter_dtype=False)
    for name, p in adapted.named_parameters():
        if "lora_" in name:
            p.data = p.data.float()
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.02)
    adapted.save_pretrained(work / "adapter")
    rng = random.Random(1)
    words = ["red", "blue", "house", "tree", "runs", "sings", "river", "stone", "green", "bird", "lamp", "door"]
    rows = [{"id": str(i), "question": " ".join(rng.choices(words, k=6)), "answer": " ".join(rng.choices(words, k=args.length))}
            for i in range(args.documents)]
    (work / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    subprocess.run([args.sdrrl, "pack", "--model", work / "model", "--examples", work / "rows.jsonl", "--out", work / "shards",
                    "--max-length", str(args.length), "--truncate"], check=True, stdout=subprocess.DEVNULL)
    return read_shard(work / "shards" / "train.tokens")


def theirs(args, work, documents, dtype):
    device = torch_device(args.device)
    model = LlamaForCausalLM.from_pretrained(work / "model", dtype=dtype, attn_implementation="sdpa").to(device)
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=TARGETS, task_type="CAUSAL_LM"), autocast_adapter_dtype=False)
    saved = load_file(work / "adapter" / "adapter_model.safetensors")
    parameters = {n.replace(".default", ""): p for n, p in model.named_parameters() if p.requires_grad}
    for name, p in parameters.items():
        # The adapters stay in f32, as here and in peft by default.
        p.data = saved[name].to(device, copy=True)
    cast = torch.autocast(device.partition(":")[0], dtype=dtype, enabled=dtype != torch.float32)
    optimizer = torch.optim.AdamW(parameters.values(), lr=LR, weight_decay=0.0)
    trained = sum(sum(w[1:]) for _, w in documents)
    losses, norms = [], []
    for _ in range(args.steps):
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for ids, weights in documents:
            ids = torch.tensor([ids], device=device)
            weight = torch.tensor(weights[1:], device=device)
            with cast:
                logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
            loss = (torch.nn.functional.cross_entropy(logits.float(), ids[0, 1:], reduction="none") * weight).sum() / trained
            loss.backward()
            total += loss.item()
        losses.append(total)
        norms.append(torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0).item())
        optimizer.step()
    after = torch.cat([(p.data.cpu().float() - saved[n]).flatten() for n, p in sorted(parameters.items())])
    return losses, norms, after


def ours(args, work):
    command = [args.sdrrl, "train", "--model", work / "model", "--shards", work / "shards", "--adapter", work / "adapter", "--out", work / "out",
               "--device", args.device, "--dtype", args.dtype, "--lr", str(LR), "--schedule", "constant", "--warmup-ratio", "0",
               "--max-steps", str(args.steps), "--epochs", str(args.steps), "--batch-documents", str(args.documents)]
    subprocess.run([str(c) for c in command], check=True, stdout=subprocess.DEVNULL)
    rows = [json.loads(line) for line in (work / "out" / "metrics.jsonl").open()]
    rows = [r for r in rows if "train/loss" in r]
    before, after = (load_file(work / d / "adapter_model.safetensors") for d in ["adapter", "out"])
    change = torch.cat([(after[n].float() - before[n]).flatten() for n in sorted(before)])
    return [r["train/loss"] for r in rows], [r["train/grad_norm"] for r in rows], change


def distance(a, b):
    a, b = (torch.as_tensor(x, dtype=torch.float64) for x in (a, b))
    return ((a - b).norm() / b.norm()).item()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sdrrl")
    parser.add_argument("--shape", default="llama-1b")
    parser.add_argument("--dtype", default="bf16", choices=["f32", "bf16"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--documents", type=int, default=8)
    parser.add_argument("--out", help="keep the files here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = pathlib.Path(args.out or temporary)
        work.mkdir(parents=True, exist_ok=True)
        torch.backends.cuda.matmul.allow_tf32 = False
        clock, seconds = time.perf_counter(), {}

        def timed(what, f, *more):
            nonlocal clock
            found, now = f(args, work, *more), time.perf_counter()
            seconds[what], clock = round(now - clock, 1), now
            return found
        documents = timed("model", make_model)
        own = timed("ours", ours)
        exact = timed("torch f32", theirs, documents, torch.float32)
        peer = timed("torch bf16", theirs, documents, torch.bfloat16) if args.dtype == "bf16" else None
    result = {"shape": args.shape, "dtype": args.dtype, "steps": args.steps, "torch": torch.__version__, "seconds": seconds, "ours_on": args.device,
              **card(torch_device(args.device))}
    good = True
    for i, what in enumerate(["losses", "gradient norms", "adapter's change"]):
        mine = distance(own[i], exact[i])
        allowed = 1.5 * distance(peer[i], exact[i]) + 1e-4 if peer else 1e-3
        good &= mine <= allowed
        result[what] = {"distance": mine, "allowed": allowed}
        print(f"{what:18} {mine:.3e} from PyTorch in f32, allowed {allowed:.3e}{'' if mine <= allowed else '  FAILED'}")
    result["passed"] = good
    print(json.dumps(result))
    sys.exit(0 if good else 1)


main()
