#!/usr/bin/env python3
"""The PyTorch side of benches/kernels.rs on a GPU, and the table of both.

python scripts/peer_kernels.py run --rows OURS.jsonl --json THEIRS.jsonl [--device cuda] [--compile]
    times PyTorch's equivalent of every row in OURS.jsonl that has one: cuBLASLt for products, the fastest of cuDNN's and flash's SDPA for attention,
    fused AdamW, torch.compile (--compile) for what PyTorch has no single kernel for. Random normal inputs, medians of 31 by CUDA events, the L2 cache
    flushed before memory-bound rows, as the other side does.
python scripts/peer_kernels.py table --ours A.jsonl [A2.jsonl ..] --theirs B.jsonl [B2.jsonl ..]
    medians over rounds of both sides, a row each, slowest against its peer first. To interleave, alternate the two programs and give all files.
pip install torch."""
import argparse
import json
import math
import statistics
import time

import torch
import torch.nn.functional as F

DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}
FLUSH = 256 << 20


def rope(x, cos, sin):
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


def sdpa(q, k, v, causal, backend):
    with torch.nn.attention.sdpa_kernel(backend):
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1])


class Peers:
    """A method an op: (dims, dtype) to the calls that do its work; the fastest counts. `None` if PyTorch has no equivalent."""

    def __init__(self, device, compiled):
        self.device = device
        self.compile = torch.compile if compiled else lambda f: f
        backends = torch.nn.attention.SDPBackend
        self.backends = {"cudnn": backends.CUDNN_ATTENTION, "flash": backends.FLASH_ATTENTION} if device.startswith("cuda") else {"math": backends.MATH}

    def normal(self, *dims, dtype):
        return torch.randn(*dims, device=self.device, dtype=dtype)

    def of(self, op, dims, dtype):
        method = getattr(self, op, None)
        return method(dims, dtype) if method else None

    def pointwise(self, name, f, count):
        def peers(d, t):
            inputs = [self.normal(*d, dtype=t) for _ in range(count)]
            g = self.compile(f)
            return {name: lambda: g(*inputs)}
        return peers

    def embedding_forward(self, d, t):
        n, c, v = d
        table, ids = self.normal(v, c, dtype=t), torch.randint(v, (n,), device=self.device)
        return {"embedding": lambda: F.embedding(ids, table)}

    def rmsnorm_forward(self, d, t):
        x, w = self.normal(*d, dtype=t), self.normal(d[1], dtype=t)
        f = self.compile(lambda x, w: F.rms_norm(x, (d[1],), w, 1e-5))
        return {"rms_norm": lambda: f(x, w)}

    def add_rmsnorm_forward(self, d, t):
        x, r, w = self.normal(*d, dtype=t), self.normal(*d, dtype=t), self.normal(d[1], dtype=t)

        def plain(x, r, w):
            s = x + r
            return s, F.rms_norm(s, (d[1],), w, 1e-5)
        f = self.compile(plain)
        return {"add, rms_norm": lambda: f(x, r, w)}

    def backward(self, name, f, inputs, dout):
        """A call that runs only the backward of f at these inputs."""
        leaves = [x.detach().requires_grad_() for x in inputs]
        out = f(*leaves)
        return {name: lambda: torch.autograd.grad(out, leaves, dout, retain_graph=True)}

    def rmsnorm_backward(self, d, t):
        w = self.normal(d[1], dtype=t)
        f = self.compile(lambda x: F.rms_norm(x, (d[1],), w, 1e-5))
        return self.backward("rms_norm backward", f, [self.normal(*d, dtype=t)], self.normal(*d, dtype=t))

    def rmsnorm_backward_dweight(self, d, t):
        f = self.compile(lambda x, w: F.rms_norm(x, (d[1],), w, 1e-5))
        return self.backward("rms_norm backward", f, [self.normal(*d, dtype=t), self.normal(d[1], dtype=t)], self.normal(*d, dtype=t))

    def layernorm_forward(self, d, t):
        x, w, b = self.normal(*d, dtype=t), self.normal(d[1], dtype=t), self.normal(d[1], dtype=t)
        return {"layer_norm": lambda: F.layer_norm(x, (d[1],), w, b)}

    def layernorm_backward(self, d, t):
        w, b = self.normal(d[1], dtype=t), self.normal(d[1], dtype=t)
        return self.backward("layer_norm backward", lambda x: F.layer_norm(x, (d[1],), w, b), [self.normal(*d, dtype=t)], self.normal(*d, dtype=t))

    def gelu_forward(self, d, t):
        return self.pointwise("gelu", F.gelu, 1)(d, t)

    def gelu_backward(self, d, t):
        return self.backward("gelu backward", F.gelu, [self.normal(*d, dtype=t)], self.normal(*d, dtype=t))

    def relu_forward(self, d, t):
        return self.pointwise("relu", F.relu, 1)(d, t)

    def relu_backward(self, d, t):
        return self.backward("relu backward", F.relu, [self.normal(*d, dtype=t)], self.normal(*d, dtype=t))

    def rope_forward(self, d, t):
        x, cos, sin = self.normal(*d, dtype=t), self.normal(d[0], 1, d[2], dtype=t), self.normal(d[0], 1, d[2], dtype=t)
        f = self.compile(rope)
        return {"rope": lambda: f(x, cos, sin)}

    def swiglu_forward(self, d, t):
        return self.pointwise("silu(gate) * up", lambda g, u: F.silu(g) * u, 2)(d, t)

    def swiglu_backward(self, d, t):
        f = self.compile(lambda g, u: F.silu(g) * u)
        return self.backward("silu(gate) * up backward", f, [self.normal(*d, dtype=t), self.normal(*d, dtype=t)], self.normal(*d, dtype=t))

    def add(self, d, t):
        x, y = self.normal(*d, dtype=t), self.normal(*d, dtype=t)
        return {"add_": lambda: x.add_(y)}

    def cast_to_f32(self, d, t):
        x = self.normal(*d, dtype=t)
        return {"float()": lambda: x.float()}

    def gather_rows(self, d, t):
        x, ids = self.normal(*d, dtype=t), torch.randperm(d[0], device=self.device)
        return {"index_select": lambda: x.index_select(0, ids)}

    def linear_forward(self, d, t):
        n, m, k = d
        x, w = self.normal(n, k, dtype=t), self.normal(m, k, dtype=t)
        return {"linear": lambda: F.linear(x, w)}

    linear_forward_decode = linear_forward

    def linear_backward_input(self, d, t):
        n, m, k = d
        dy, w = self.normal(n, m, dtype=t), self.normal(m, k, dtype=t)
        return {"mm": lambda: dy @ w}

    def linear_backward_weight(self, d, t):
        n, m, k = d
        dy, x = self.normal(n, m, dtype=t), self.normal(n, k, dtype=t)
        return {"mm": lambda: dy.t() @ x}

    def lora_forward(self, d, t):
        n, m, k, r = d
        x, w, a, b = (self.normal(*s, dtype=t) for s in [(n, k), (m, k), (r, k), (m, r)])
        return {"linear, two small ones": lambda: F.linear(x, w) + 2.0 * F.linear(F.linear(x, a), b)}

    def lora_backward_input(self, d, t):
        n, m, k, r = d
        dy, w, du, a = (self.normal(*s, dtype=t) for s in [(n, m), (m, k), (n, r), (r, k)])
        return {"mm, addmm": lambda: torch.addmm(dy @ w, du, a)}

    def lora_backward(self, d, t):
        n, m, k, r = d
        dy, u, x, b = (self.normal(*s, dtype=t) for s in [(n, m), (n, r), (n, k), (m, r)])

        def run():
            du = dy @ b
            return dy.t() @ u, du.t() @ x
        return {"three mm": run}

    def attention_forward(self, d, t):
        b, n, nh, nkv, hs = d
        q, k, v = (self.normal(b, h, n, hs, dtype=t) for h in [nh, nkv, nkv])
        return {name: lambda x=x: sdpa(q, k, v, True, x) for name, x in self.backends.items()}

    def attention_backward(self, d, t):
        b, n, nh, nkv, hs = d
        inputs = [self.normal(b, h, n, hs, dtype=t) for h in [nh, nkv, nkv]]
        dout, found = self.normal(b, nh, n, hs, dtype=t), {}
        for name, backend in self.backends.items():
            found.update(self.backward(name, lambda q, k, v, x=backend: sdpa(q, k, v, True, x), inputs, dout))
        return found

    def cross_attention_forward(self, d, t):
        b, n, nh, nkv, hs = d
        q, k, v = (self.normal(b, h, n, hs, dtype=t) for h in [nh, nkv, nkv])
        return {name: lambda x=x: sdpa(q, k, v, False, x) for name, x in self.backends.items()}

    def decode_attention(self, d, t):
        b, n, nh, nkv, hs = d
        q, k, v = self.normal(b, nh, 1, hs, dtype=t), self.normal(b, nkv, n, hs, dtype=t), self.normal(b, nkv, n, hs, dtype=t)
        return {name: lambda x=x: sdpa(q, k, v, False, x) for name, x in self.backends.items()}

    def linear_cross_entropy(self, d, t):
        n, c, v = d
        h, w = self.normal(n, c, dtype=t).requires_grad_(), self.normal(v, c, dtype=t)
        y = torch.randint(v, (n,), device=self.device)
        f = self.compile(lambda h: F.cross_entropy(F.linear(h, w).float(), y))
        return {"linear, cross_entropy, backward": lambda: torch.autograd.grad(f(h), h)}

    def adamw(self, d, _):
        p = torch.nn.Parameter(self.normal(*d, dtype=torch.float32))
        p.grad = self.normal(*d, dtype=torch.float32)
        optimizer = torch.optim.AdamW([p], lr=1e-4, fused=self.device.startswith("cuda"))
        return {"AdamW(fused)": optimizer.step}

    def grad_norm(self, d, _):
        g = self.normal(*d, dtype=torch.float32)
        return {"norm": lambda: torch.linalg.vector_norm(g)}

    def sample_greedy(self, d, t):
        x = self.normal(*d, dtype=torch.float32)
        return {"argmax": lambda: x.argmax(-1)}

    def beam_step(self, d, _):
        b, k, v = d
        x, scores = self.normal(b, k, v, dtype=torch.float32), self.normal(b, k, 1, dtype=torch.float32)
        return {"log_softmax, topk": lambda: (x.log_softmax(-1) + scores).view(b, -1).topk(2 * k)}


def clock(call, cold, flush, on_gpu, repeats=31):
    def once():
        if cold and on_gpu:
            flush[0].copy_(flush[1])
        if not on_gpu:
            start = time.perf_counter()
            call()
            return time.perf_counter() - start
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3
    for _ in range(3):
        call()
    return statistics.median(once() for _ in range(repeats))


def run(args):
    torch.manual_seed(1)
    on_gpu = args.device.startswith("cuda")
    flush = [torch.empty(FLUSH // 4, device=args.device) for _ in range(2)] if on_gpu else None
    peers = Peers(args.device, args.compile)
    with open(args.rows) as rows, open(args.json, "w") as out:
        for row in map(json.loads, rows):
            line = {"op": row["op"], "shape": row["shape"], "dtype": row["dtype"], "torch": torch.__version__}
            try:
                calls = peers.of(row["op"], row["shape"], DTYPES[row["dtype"]])
                if calls is None:
                    continue
                cold = "bytes" in row
                times = {}
                for name, call in calls.items():
                    try:
                        times[name] = clock(call, cold, flush, on_gpu)
                    except RuntimeError as e:
                        line.setdefault("errors", {})[name] = str(e).split("\n")[0]
                name = min(times, key=times.get)
                line.update(seconds=times[name], peer=name, all=times)
            except (RuntimeError, ValueError) as e:
                line["error"] = str(e).split("\n")[0]
            out.write(json.dumps(line) + "\n")
            out.flush()
            del peers
            if on_gpu:
                torch.cuda.empty_cache()
            peers = Peers(args.device, args.compile)


def gather(files):
    found = {}
    for name in files:
        with open(name) as rows:
            for row in map(json.loads, rows):
                if "seconds" in row:
                    found.setdefault((row["op"], tuple(row["shape"]), row["dtype"]), []).append(row)
    return {k: (statistics.median(r["seconds"] for r in v), v[0]) for k, v in found.items()}


def table(args):
    ours, theirs = gather(args.ours), gather(args.theirs)
    print("| op | shape | type | us | of ceiling | PyTorch us | by | PyTorch / ours |\n| --- | --- | --- | ---: | ---: | ---: | --- | ---: |")
    rows = []
    for key, (seconds, row) in ours.items():
        peer = theirs.get(key)
        rows.append((peer[0] / seconds if peer else math.inf, key, seconds, row, peer))
    for ratio, (op, shape, dtype), seconds, row, peer in sorted(rows, key=lambda r: r[0]):
        percent = f"{row['percent']:.0f} %" if row.get("percent") else "-"
        other = f"{peer[0] * 1e6:.1f} | {peer[1]['peer']} | {ratio:.2f}" if peer else "- | - | -"
        print(f"| {op} | {' x '.join(map(str, shape))} | {dtype} | {seconds * 1e6:.1f} | {percent} | {other} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("run")
    one.add_argument("--rows", required=True)
    one.add_argument("--json", required=True)
    one.add_argument("--device", default="cuda")
    one.add_argument("--compile", action="store_true")
    one.set_defaults(do=run)
    two = commands.add_parser("table")
    two.add_argument("--ours", nargs="+", required=True)
    two.add_argument("--theirs", nargs="+", required=True)
    two.set_defaults(do=table)
    args = parser.parse_args()
    args.do(args)


main()
