#!/usr/bin/env python3
"""Writes tests/golden/optimizers.safetensors: parameters and states after some steps of optimizers that this project did not write.

pip install torch==2.15.0 transformers==5.24.0 bitsandbytes==0.50.2 safetensors numpy
All on the CPU. Gradients: normal numbers whose size grows by step and falls off along the columns, so that a block's moments span powers of ten.
adamw8.{signed_map,unsigned_map}               bitsandbytes' create_dynamic_map
adamw8.{big,small}.{param,grads,after}          AdamW8bit: (72, 65), 8-bit, and (7, 9), which stays f32; after: the parameter after each step
adamw8.big.{m,v}_{codes,tops}                   its state at the end
adafactor.{big,tall,vector}.{param,grads,after} transformers' Adafactor as its Trainer calls it, with decay
adafactor.{big,tall}.{row,col}                  its state at the end
muon.{wide,tall,low}.{param,grads,after}        torch.optim.Muon, adjust_lr_fn="match_rms_adamw", with its iteration in f32: its own source with one word changed
muon.{wide,tall,low}.bf16                       the parameter at the end by torch.optim.Muon as it is, which iterates in bf16
bitsandbytes' quantiser for the CPU rounds small values through a table and misses the nearest code (its CUDA kernels search for it): here it is replaced by
the nearest code itself; everything else is theirs.
"""
import inspect
from pathlib import Path

import bitsandbytes as bnb
import bitsandbytes.backends.cpu.ops as cpu_ops
import torch
import transformers
from bitsandbytes.functional import create_dynamic_map
from safetensors.torch import save_file
from torch.optim import _muon
from transformers.optimization import Adafactor

OUT = Path(__file__).resolve().parent.parent / "tests" / "golden" / "optimizers.safetensors"
STEPS = 5


def nearest(values, code, absmax, out, blocksize):
    blocks = torch.nn.functional.pad(values.flatten(), (0, -values.numel() % blocksize)).view(-1, blocksize)
    absmax.copy_(blocks.abs().max(1).values)
    near = (blocks / absmax[:, None]).unsqueeze(-1).sub(code).abs().argmin(-1)
    out.copy_(near.flatten()[: values.numel()].view(out.shape))


cpu_ops._quant_blockwise_fp32_direct = nearest


def given(name, shape):
    """A parameter and its gradients."""
    g = torch.Generator().manual_seed(sum(name.encode()))
    param = torch.randn(shape, generator=g) * 0.3
    fall = 10.0 ** (-3.0 * torch.arange(shape[-1]) / shape[-1])
    grads = torch.stack([torch.randn(shape, generator=g) * fall * 0.01 * (k + 1) for k in range(STEPS)])
    return param, grads


def steps(out, name, shape, optimizer_of):
    """Runs the optimizer; its state of the parameter at the end."""
    param, grads = given(name, shape)
    out[f"{name}.param"], out[f"{name}.grads"] = param.clone(), grads
    p = torch.nn.Parameter(param.clone())
    optimizer = optimizer_of(p)
    after = []
    for grad in grads:
        p.grad = grad.clone()
        optimizer.step()
        after.append(p.detach().clone())
    out[f"{name}.after"] = torch.stack(after)
    return optimizer.state[p]


def adamw8(out):
    out["adamw8.signed_map"], out["adamw8.unsigned_map"] = create_dynamic_map(signed=True), create_dynamic_map(signed=False)
    make = lambda p: bnb.optim.AdamW8bit([p], lr=1e-2, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.1)
    state = steps(out, "adamw8.big", (72, 65), make)
    assert state["state1"].dtype == torch.uint8
    for ours, theirs in (("m", "1"), ("v", "2")):
        out[f"adamw8.big.{ours}_codes"] = state[f"state{theirs}"].flatten().int()
        out[f"adamw8.big.{ours}_tops"] = state[f"absmax{theirs}"]
    assert steps(out, "adamw8.small", (7, 9), make)["state1"].dtype == torch.float32


def adafactor(out):
    make = lambda p: Adafactor([p], lr=1e-2, weight_decay=0.1, scale_parameter=False, relative_step=False)
    for name, shape in (("big", (24, 37)), ("tall", (90, 4)), ("vector", (50,))):
        state = steps(out, f"adafactor.{name}", shape, make)
        if len(shape) == 2:
            out[f"adafactor.{name}.row"], out[f"adafactor.{name}.col"] = state["exp_avg_sq_row"], state["exp_avg_sq_col"]


def muon(out):
    make = lambda p: torch.optim.Muon([p], lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    shapes = {"wide": (24, 40), "tall": (48, 20), "low": (4, 90)}
    for name, shape in shapes.items():
        steps(out, f"muon.{name}", shape, make)
        out[f"muon.{name}.bf16"] = out[f"muon.{name}.after"][-1].clone()
    source = inspect.getsource(_muon._zeropower_via_newtonschulz)
    assert source.count("torch.bfloat16") == 1
    exec(source.replace("torch.bfloat16", "torch.float32"), _muon.__dict__)
    for name, shape in shapes.items():
        steps(out, f"muon.{name}", shape, make)


def main():
    out = {}
    adamw8(out)
    adafactor(out)
    muon(out)
    save_file({k: v.contiguous() for k, v in out.items()}, OUT, metadata={"torch": torch.__version__, "bitsandbytes": bnb.__version__, "transformers": transformers.__version__})


if __name__ == "__main__":
    main()
