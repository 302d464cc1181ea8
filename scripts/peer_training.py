#!/usr/bin/env python3
"""The PyTorch side of benches/steps.rs: python scripts/peer_training.py f32|bf16 [--shape S] [--rows 4] [--length 256] [--device cpu|cuda].
Prints one JSON line. The usual loop of transformers and peft, SDPA by PyTorch's own choice (flash or cuDNN on a GPU), no torch.compile. Where the GPU's
memory does not do, it repeats with gradient checkpointing and says so.

pip install torch transformers peft. Threads as torch finds them; set OMP_NUM_THREADS to change."""
import argparse
import gc
import json
import math
import pathlib
import resource
import statistics
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from peer_card import card, torch_device


def steps(args, shape, checkpointing):
    """(seconds of each step, losses)"""
    torch.manual_seed(1)
    with torch.device(args.device):
        dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[args.dtype]
        model = LlamaForCausalLM._from_config(LlamaConfig(**shape), dtype=dtype, attn_implementation="sdpa")
        tokens = torch.randint(0, model.config.vocab_size, (args.rows, args.length))
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(model, LoraConfig(r=args.lora_rank, lora_alpha=2 * args.lora_rank, target_modules=targets, task_type="CAUSAL_LM"),
                           autocast_adapter_dtype=False)
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0)
    times, losses = [], []
    for _ in range(5):
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(loss.item())
        if args.device.startswith("cuda"):
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return times, losses


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("dtype", choices=["f32", "bf16"])
    parser.add_argument("--shape", default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--lora-rank", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--checkpointing", action="store_true", help="from the start")
    args = parser.parse_args()
    args.device = torch_device(args.device)
    shape = json.loads((pathlib.Path(__file__).parent.parent / "benches/shapes.json").read_text())[args.shape]
    found, checkpointing = None, args.checkpointing
    try:
        found = steps(args, shape, checkpointing)
    except RuntimeError as e:
        # cuBLAS has words of its own for it.
        if checkpointing or not any(x in str(e) for x in ["out of memory", "ALLOC_FAILED"]):
            raise
    # Outside of the handler, whose exception holds the tensors.
    if found is None:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        checkpointing = True
        found = steps(args, shape, checkpointing)
    times, losses = found
    assert abs(losses[0] - math.log(shape["vocab_size"])) < 2 and losses[-1] < losses[0], f"losses {losses}"
    on_gpu = args.device.startswith("cuda")
    peak = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"tokens_per_second": args.rows * args.length / statistics.median(times[1:]), "peak_mib": peak, "checkpointing": checkpointing,
                      "first_loss": losses[0], "last_loss": losses[-1], "card": card(args.device)["device"] if on_gpu else None}))


main()
