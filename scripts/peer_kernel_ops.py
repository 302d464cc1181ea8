"""PyTorch's equivalents of the rows of tests/kernels/table, a method per op; scripts/peer_kernels.py times and checks them."""
import math

import torch
import torch.nn.functional as F

# Ops that PyTorch has no equivalent of: ggml's k-quants.
WITHOUT_PEER = {"dequantize_q4_k", "dequantize_q6_k", "cast_many", "dropout", "adamw8", "adafactor", "adafactor_vector", "muon"}


class Peer:
    """The calls that do an op's work, by name (the fastest counts); each returns its results. `plain` is the formula in f64."""

    def __init__(self, inputs, plain, calls, compiled=None):
        self.inputs, self.formula, self.compared = inputs, plain, lambda got: got
        self.calls = {name: (lambda f=f: f(*inputs)) for name, f in calls.items()}
        # Compiled at the first call.
        self.compiled = {f"torch.compile: {name}": f for name, f in (compiled or {}).items()}

    def compile(self):
        for name, f in self.compiled.items():
            g = torch.compile(f, fullgraph=True, dynamic=False)
            self.calls[name] = lambda g=g: g(*self.inputs)

    def plain(self):
        return self.formula(*(x.detach().double() if x.is_floating_point() else x for x in self.inputs))


def gradient(f, count):
    """f's gradients of its first `count` arguments, by autograd: (*args, dout) -> gradients. Runs f's forward too."""
    def run(*args):
        leaves = [x.detach().requires_grad_() for x in args[:count]]
        with torch.enable_grad():
            return torch.autograd.grad(f(*leaves, *args[count:-1]), leaves, args[-1])
    return run


def backward_only(f, inputs, dout, finish=lambda *grads: grads):
    """A call that runs only the backward of f at these inputs."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = f(*leaves)
    return lambda *_: finish(*torch.autograd.grad(out, leaves, dout, retain_graph=True))


def rms_norm(x, w):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * w


def layer_norm(x, w, b):
    x = x - x.mean(-1, keepdim=True)
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * w + b


def rotate(x, positions, cos, sin):
    c, s = cos[positions][:, None, :], sin[positions][:, None, :]
    a, b = x.to(c.dtype).chunk(2, -1)
    return torch.cat([a * c - b * s, b * c + a * s], -1).to(x.dtype)


def attention(q, k, v, causal, window=0, cap=0.0):
    """softmax(q kᵀ / √d) v of (B, H, T, D), plainly. Queries are the last of the keys' positions; each sees `window` keys, itself the last; scores are capped."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if cap:
        scores = cap * torch.tanh(scores / cap)
    ones, last = torch.ones_like(scores, dtype=torch.bool), k.shape[2] - q.shape[2]
    if causal:
        scores = scores.masked_fill(ones.triu(1 + last), -math.inf)
    if window:
        scores = scores.masked_fill(ones.tril(last - window), -math.inf)
    return scores.softmax(-1) @ v


class Peers:
    """(dims, dtype) to a `Peer`, by the op's name."""

    def __init__(self, device):
        self.device = device
        kinds = torch.nn.attention.SDPBackend
        self.backends = {"math": kinds.MATH}
        if device.startswith("cuda"):
            self.backends = {"cudnn": kinds.CUDNN_ATTENTION, "flash": kinds.FLASH_ATTENTION, "efficient": kinds.EFFICIENT_ATTENTION}

    def normal(self, *dims, dtype, fan=1):
        return torch.randn(*dims, device=self.device, dtype=dtype).mul_(fan ** -0.5)

    def normals(self, count, dims, dtype):
        return [self.normal(*dims, dtype=dtype) for _ in range(count)]

    def ids(self, below, *dims):
        return torch.randint(below, dims, device=self.device)

    def of(self, op, dims, dtype):
        method = getattr(self, op, None)
        return method(dims, dtype) if method else None

    def both(self, inputs, plain, name, f):
        return Peer(inputs, plain, {name: f}, {name: f})

    # Rows.

    def embedding_forward(self, d, t):
        n, c, v = d
        return Peer([self.normal(v, c, dtype=t), self.ids(v, n)], lambda w, i: w[i], {"embedding": lambda w, i: F.embedding(i, w)})

    def embedding_backward(self, d, t):
        n, c, v = d
        inputs = [torch.zeros(v, c, device=self.device), self.normal(n, c, dtype=t), self.ids(v, n)]

        def plain(dw, dy, ids):
            return F.one_hot(ids, v).to(dy).t() @ dy
        return Peer(inputs, plain, {"index_add_ of float()": lambda dw, dy, ids: dw.index_add_(0, ids, dy.float())})

    def rmsnorm_forward(self, d, t):
        return self.both([self.normal(*d, dtype=t), self.normal(d[1], dtype=t)], rms_norm, "rms_norm", lambda x, w: F.rms_norm(x, (d[1],), w, 1e-5))

    def add_rmsnorm_forward(self, d, t):
        def f(x, r, w):
            s = x + r
            return F.rms_norm(s, (d[1],), w, 1e-5), s
        inputs = [*self.normals(2, d, t), self.normal(d[1], dtype=t)]
        return self.both(inputs, lambda x, r, w: (rms_norm(x + r, w), x + r), "add, rms_norm", f)

    def norm_backward(self, d, t, forward, plain_forward, trained, weights):
        """Gradients are added, as a residual stream needs them: dx += ..., and dweight += ... in f32 where the weight is trained."""
        x, dy, dx = self.normals(3, d, t)
        dw = torch.zeros(d[1] if trained else 0, device=self.device)
        inputs, k = [x, *weights, dy, dx, dw], 2 if trained else 1

        def plain(*a):
            grads = gradient(plain_forward, k)(*a[:-2])
            return (a[-2] + grads[0], grads[1]) if trained else a[-2] + grads[0]

        def finish(g, gw=None):
            return (dx.add_(g), dw.add_(gw)) if trained else dx.add_(g)
        fixed = weights[1:] if trained else weights
        free = [x, *weights[:1]] if trained else [x]
        return inputs, plain, backward_only(lambda *leaves: forward(*leaves, *fixed), free, dy, finish)

    def rmsnorm_backward(self, d, t, trained=False):
        w = self.normal(d[1], dtype=t)
        inputs, plain, eager = self.norm_backward(d, t, lambda x, w: F.rms_norm(x, (d[1],), w, 1e-5), rms_norm, trained, [w])

        def formula(x, w, dy, dx, dw):
            x, dy, g = x.float(), dy.float(), dy.float() * w.float()
            rstd = torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)
            grad = rstd * (g - x * rstd.square() * (g * x).mean(-1, keepdim=True))
            if trained:
                return dx.add_(grad), dw.add_((dy * x * rstd).sum(0))
            return dx.add_(grad)
        return Peer(inputs, plain, {"rms_norm's backward, add_": eager}, {"backward's formula": formula})

    def rmsnorm_backward_dweight(self, d, t):
        return self.rmsnorm_backward(d, t, True)

    def layernorm_forward(self, d, t):
        inputs = [self.normal(*d, dtype=t), *self.normals(2, d[1:], t)]
        return self.both(inputs, layer_norm, "layer_norm", lambda x, w, b: F.layer_norm(x, (d[1],), w, b, 1e-5))

    def layernorm_backward(self, d, t):
        weights = self.normals(2, d[1:], t)
        inputs, plain, eager = self.norm_backward(d, t, lambda x, w, b: F.layer_norm(x, (d[1],), w, b, 1e-5), layer_norm, False, weights)

        def formula(x, w, b, dy, dx, dw):
            x, g = x.float(), dy.float() * w.float()
            x = x - x.mean(-1, keepdim=True)
            rstd = torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)
            x = x * rstd
            return dx.add_(rstd * (g - g.mean(-1, keepdim=True) - x * (g * x).mean(-1, keepdim=True)))
        return Peer(inputs, plain, {"layer_norm's backward, add_": eager}, {"backward's formula": formula})

    def gelu_forward(self, d, t):
        return Peer(self.normals(1, d, t), lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2, {"gelu": F.gelu})

    def gelu_backward(self, d, t):
        def plain(dy, x):
            return dy * ((1 + torch.erf(x / math.sqrt(2))) / 2 + x * torch.exp(-x * x / 2) / math.sqrt(2 * math.pi))
        return Peer(self.normals(2, d, t), plain, {"gelu_backward": lambda dy, x: torch.ops.aten.gelu_backward(dy, x)})

    def relu_forward(self, d, t):
        return Peer(self.normals(1, d, t), lambda x: x * (x > 0), {"relu": F.relu})

    def relu_backward(self, d, t):
        return Peer(self.normals(2, d, t), lambda dy, x: dy * (x > 0), {"threshold_backward": lambda dy, x: torch.ops.aten.threshold_backward(dy, x, 0)})

    def rope_forward(self, d, t):
        half = d[2] // 2
        angles = torch.arange(2048, device=self.device)[:, None] * 1e4 ** (-torch.arange(half, device=self.device) / half)
        positions = torch.arange(d[0], device=self.device) % 2048
        inputs = [self.normal(*d, dtype=t), positions, angles.cos(), angles.sin()]
        return self.both(inputs, rotate, "rotate halves", rotate)

    def swiglu_forward(self, d, t):
        return self.both(self.normals(2, d, t), lambda g, u: g * torch.sigmoid(g) * u, "silu(gate) * up", lambda g, u: F.silu(g) * u)

    def swiglu_backward(self, d, t):
        g, u, dy = self.normals(3, d, t)

        def formula(g, u, dy):
            gf, dyf = g.float(), dy.float()
            s = torch.sigmoid(gf)
            return (dyf * u * s * (1 + gf * (1 - s))).to(g.dtype), (dyf * gf * s).to(g.dtype)
        eager = backward_only(lambda g, u: F.silu(g) * u, [g, u], dy)
        return Peer([g, u, dy], gradient(lambda g, u: g * torch.sigmoid(g) * u, 2), {"silu(gate) * up's backward": eager}, {"backward's formula": formula})

    def rmsnorm_forward_of_heads(self, d, t):
        n, nh, hs = d
        return self.both([self.normal(n * nh, hs, dtype=t), self.normal(hs, dtype=t)], lambda x, w: rms_norm(x, 1 + w), "rms_norm, 1 + weight",
                         lambda x, w: F.rms_norm(x, (hs,), 1 + w, 1e-5))

    def rmsnorm_backward_of_heads(self, d, t):
        return self.rmsnorm_backward([d[0] * d[1], d[2]], t)

    def geglu_tanh_forward(self, d, t):
        def plain(g, u):
            return g * (1 + torch.tanh(math.sqrt(2 / math.pi) * (g + 0.044715 * g ** 3))) / 2 * u
        return self.both(self.normals(2, d, t), plain, "gelu(gate) * up", lambda g, u: F.gelu(g, approximate="tanh") * u)

    def geglu_tanh_backward(self, d, t):
        g, u, dy = self.normals(3, d, t)

        def forward(g, u):
            return F.gelu(g, approximate="tanh") * u

        def formula(g, u, dy):
            dact = torch.ops.aten.gelu_backward(dy * u, g, approximate="tanh")
            return dact, dy * F.gelu(g, approximate="tanh")
        return Peer([g, u, dy], gradient(forward, 2), {"gelu(gate) * up's backward": backward_only(forward, [g, u], dy)}, {"backward's formula": formula})

    def softcap(self, d, t):
        return self.both(self.normals(1, d, t), lambda x: 30 * torch.tanh(x / 30), "div_, tanh_, mul_", lambda x: x.div_(30).tanh_().mul_(30))

    # DoRA: as PEFT computes it.

    def dora_norms(self, d, t):
        m, k, r = d
        inputs = [self.normal(m, k, dtype=t, fan=k), self.normal(r, k, dtype=torch.float32, fan=k), self.normal(m, r, dtype=torch.float32, fan=r)]

        def norms(w, a, b):
            return torch.linalg.vector_norm(torch.addmm(w.to(a.dtype), b, a, alpha=2), dim=1)
        return self.both(inputs, norms, "addmm, vector_norm", norms)

    def dora_scales(self, d):
        m = self.normal(d[1], dtype=torch.float32)
        return [m, 1 + m.abs()]

    def dora_forward(self, d, t):
        return self.both([self.normal(*d, dtype=t), *self.dora_scales(d)], lambda y, m, n: y * (m / n), "mul_", lambda y, m, n: y.mul_((m / n).to(y.dtype)))

    def dora_backward(self, d, t):
        dm = torch.zeros(d[1], device=self.device)
        inputs = [*self.normals(2, d, t), *self.dora_scales(d), dm]

        def f(dy, z, m, n, dm):
            dm += (dy.float() * z.float()).sum(0) / n
            return dy.mul_((m / n).to(dy.dtype)), dm
        return self.both(inputs, lambda dy, z, m, n, dm: (dy * (m / n), (dy * z).sum(0) / n), "sum, mul_", f)

    def add(self, d, t):
        return Peer(self.normals(2, d, t), lambda x, y: x + y, {"add_": lambda x, y: x.add_(y)})

    def cast_to_f32(self, d, t):
        return self.both(self.normals(1, d, t), lambda x: x * 0.5, "float() * 0.5", lambda x: x.float() * 0.5)

    def gather_rows(self, d, t):
        inputs = [self.normal(*d, dtype=t), torch.randperm(d[0], device=self.device)]
        return Peer(inputs, lambda x, i: x[i], {"index_select": lambda x, i: x.index_select(0, i)})

    def mix(self, d, t):
        n, c, m = d
        inputs = [self.normal(n, c, dtype=torch.float32), self.normal(m, c, dtype=t), self.ids(m, n)]
        return self.both(inputs, lambda y, x, i: y + 0.3 * x[i], "add_ of rows", lambda y, x, i: y.add_(x[i], alpha=0.3))

    # Means of documents, as long as tests/kernels/table/segment_mean.rs has them.

    def segments(self, d):
        lengths = [d[1] - i * 5 % (d[1] // 2 + 2) for i in range(d[0])]
        return lengths, torch.tensor(lengths, device=self.device)

    def segment_mean_forward(self, d, t):
        lengths, counts = self.segments(d)

        def plain(x):
            return torch.stack([rows.mean(0) if len(rows) else torch.zeros_like(x[0]) for rows in x.split(lengths)])

        def f(x):
            return torch.segment_reduce(x.float(), "mean", lengths=counts, axis=0, initial=0.0)
        return Peer([self.normal(sum(lengths), d[2], dtype=t)], plain, {"segment_reduce of float()": f})

    def segment_mean_backward(self, d, t):
        lengths, counts = self.segments(d)
        inputs = [self.normal(d[0], d[2], dtype=torch.float32)]
        divided = lambda dy: dy / counts.clamp(min=1)[:, None]
        return Peer(inputs, lambda dy: divided(dy).repeat_interleave(counts, 0),
                    {"repeat_interleave": lambda dy: divided(dy).to(t).repeat_interleave(counts, 0, output_size=sum(lengths))})

    # A mixture of experts. Shares sum to 1 where the number of experts is even, as in the rows.

    def route_forward(self, d, t):
        n, e, k = d
        shares = (lambda x: x.topk(k).values.softmax(-1)) if e % 2 == 0 else (lambda x: x.softmax(-1).topk(k).values)
        return self.both([self.normal(n, e, dtype=torch.float32)], shares, "topk, softmax", shares)

    def route_backward(self, d, t):
        n, e, k = d
        x, dy = self.normal(n, e, dtype=torch.float32), self.normal(n, k, dtype=torch.float32)
        shares = (lambda x: x.topk(k).values.softmax(-1)) if e % 2 == 0 else (lambda x: x.softmax(-1).topk(k).values)
        return Peer([x, dy], gradient(shares, 1), {"autograd": backward_only(shares, [x], dy)})

    def weigh_forward(self, d, t):
        inputs = [self.normal(*d, dtype=t), self.normal(d[0], dtype=torch.float32), torch.randperm(d[0], device=self.device)]
        return self.both(inputs, lambda x, p, i: x * p[i][:, None], "index_select, mul", lambda x, p, i: x * p[i][:, None].to(x.dtype))

    def weigh_backward(self, d, t):
        inputs = [self.normal(*d, dtype=t), self.normal(*d, dtype=t), self.normal(d[0], dtype=torch.float32), torch.randperm(d[0], device=self.device)]
        f = lambda dy, x, p, i: (torch.zeros_like(p).index_copy(0, i, (dy * x).sum(-1).to(p.dtype)), dy * p[i][:, None].to(dy.dtype))
        return self.both(inputs, f, "mul, sum, index_copy", f)

    def sum_slots(self, d, t):
        n, c, k = d
        inputs = [self.normal(n * k, c, dtype=t), torch.randperm(n * k, device=self.device).reshape(n, k)]
        return self.both(inputs, lambda x, i: x[i].sum(1), "index_select, sum", lambda x, i: x[i].sum(1))

    # Products: cuBLASLt's choice.

    def linear_forward(self, d, t):
        n, m, k = d
        return Peer([self.normal(n, k, dtype=t), self.normal(m, k, dtype=t, fan=k)], lambda x, w: x @ w.t(), {"linear": F.linear})

    linear_forward_decode = linear_forward

    def linear_backward_input(self, d, t):
        n, m, k = d
        return Peer([self.normal(n, m, dtype=t), self.normal(m, k, dtype=t, fan=m)], torch.matmul, {"mm": torch.mm})

    def linear_backward_weight(self, d, t):
        n, m, k = d
        inputs = [torch.zeros(m, k, device=self.device), self.normal(n, m, dtype=t, fan=n), self.normal(n, k, dtype=t)]
        calls = {"mm, add_": lambda dw, dy, x: dw.add_(dy.t() @ x)}
        if self.device.startswith("cuda") and t != torch.float32:
            calls["addmm into f32"] = lambda dw, dy, x: torch.addmm(dw, dy.t(), x, out_dtype=torch.float32)
        return Peer(inputs, lambda dw, dy, x: dw + dy.t() @ x, calls)

    def lora(self, d, t):
        n, m, k, r = d
        return [self.normal(n, k, dtype=t), self.normal(m, k, dtype=t, fan=k), self.normal(r, k, dtype=t, fan=k), self.normal(m, r, dtype=t, fan=r)]

    def lora_forward(self, d, t):
        def f(x, w, a, b):
            u = F.linear(x, a)
            return torch.addmm(F.linear(x, w), u, b.t(), alpha=2.0), u
        return self.both(self.lora(d, t), lambda x, w, a, b: (x @ w.t() + 2 * (x @ a.t()) @ b.t(), x @ a.t()), "linear, linear, addmm", f)

    def lora_backward_input(self, d, t):
        n, m, k, r = d
        _, w, a, _ = self.lora(d, t)
        inputs = [self.normal(n, m, dtype=t, fan=m), w, self.normal(n, r, dtype=t), a]
        return self.both(inputs, lambda dy, w, du, a: dy @ w + du @ a, "mm, addmm", lambda dy, w, du, a: torch.addmm(dy @ w, du, a))

    def lora_backward(self, d, t):
        n, m, k, r = d
        x, _, _, b = self.lora(d, t)
        zeros = [torch.zeros(*s, device=self.device) for s in [(r, k), (m, r)]]

        def f(da, db, dy, u, x, b):
            du = 2.0 * (dy @ b)
            return da.add_(du.t() @ x), db.add_(dy.t() @ u, alpha=2.0), du

        def plain(da, db, dy, u, x, b):
            return 2 * (dy @ b).t() @ x, 2 * dy.t() @ u, 2 * dy @ b
        return self.both([*zeros, self.normal(n, m, dtype=t, fan=m), self.normal(n, r, dtype=t), x, b], plain, "three mm", f)

    # Attention: (B, H, T, D) as views of (B, T, H, D), which is what projections leave behind.

    def heads(self, b, n, h, hs, t):
        return self.normal(b, n, h, hs, dtype=t).transpose(1, 2)

    def sdpa(self, causal, grouped):
        """Each backend's call, with grouped queries also of heads repeated inside the call, for backends that refuse them."""
        def call(backend, repeated):
            def f(q, k, v):
                if repeated:
                    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
                with torch.nn.attention.sdpa_kernel(backend):
                    return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=grouped and not repeated)
            return f
        found = {name: call(x, False) for name, x in self.backends.items()}
        if grouped:
            found |= {f"{name}, k and v repeated": call(x, True) for name, x in self.backends.items()}
        return found

    def attended(self, d, t, causal, queries=None):
        b, n, nh, nkv, hs = d
        inputs = [self.heads(b, queries or n, nh, hs, t), *(self.heads(b, n, nkv, hs, t) for _ in range(2))]
        return Peer(inputs, lambda q, k, v: attention(q, k, v, causal), self.sdpa(causal, nh != nkv))

    def attention_forward(self, d, t):
        return self.attended(d, t, True)

    def cross_attention_forward(self, d, t):
        return self.attended(d, t, False)

    def decode_attention(self, d, t):
        return self.attended(d, t, False, 1)

    def attention_backward(self, d, t):
        b, n, nh, nkv, hs = d
        q, k, v = self.heads(b, n, nh, hs, t), self.heads(b, n, nkv, hs, t), self.heads(b, n, nkv, hs, t)
        dout, calls = self.heads(b, n, nh, hs, t), {}
        for name, f in self.sdpa(True, nh != nkv).items():
            # A backend that refuses these inputs says so when it is called.
            calls[name] = self.later(f, [q, k, v], dout)
        return Peer([q, k, v, dout], gradient(lambda q, k, v: attention(q, k, v, True), 3), calls)

    # A window and capped scores: FlexAttention, compiled; plainly without.

    def windowed(self, d, t, queries=None):
        """Inputs, the formula, and FlexAttention, which is only worth its name compiled."""
        b, n, nh, nkv, hs, window = d
        m, cap = queries or n, 50.0
        inputs = [self.heads(b, m, nh, hs, t), *(self.heads(b, n, nkv, hs, t) for _ in range(2))]

        def flex(q, k, v):
            from torch.nn.attention.flex_attention import create_block_mask, flex_attention

            def seen(b, h, i, j):
                return (j <= i + n - m) & (i + n - m - j < window)
            mask = create_block_mask(seen, None, None, m, n, device=self.device)
            return lambda f: f(q, k, v, score_mod=lambda s, b, h, i, j: cap * torch.tanh(s / cap), block_mask=mask, enable_gqa=nh != nkv)

        def compiled():
            from torch.nn.attention.flex_attention import flex_attention
            f = torch.compile(flex_attention, fullgraph=True, dynamic=False)
            made = []

            def run(q, k, v):
                made.append(flex(q, k, v)) if not made else None
                return made[0](f)
            return run
        return inputs, lambda q, k, v: attention(q, k, v, True, window, cap), compiled

    def attention_forward_window_cap(self, d, t, queries=None):
        inputs, plain, compiled = self.windowed(d, t, queries)
        peer = Peer(inputs, plain, {"plain": plain})
        peer.compile = lambda: peer.calls.update({"FlexAttention": self.bind(compiled(), inputs)})
        return peer

    def decode_attention_window_cap(self, d, t):
        return self.attention_forward_window_cap(d, t, 1)

    def attention_backward_window_cap(self, d, t):
        inputs, plain, compiled = self.windowed(d, t)
        dout = self.heads(d[0], d[1], d[2], d[4], t)
        peer = Peer([*inputs, dout], gradient(plain, 3), {"plain": self.later(plain, inputs, dout)})
        peer.compile = lambda: peer.calls.update({"FlexAttention": self.later(compiled(), inputs, dout)})
        return peer

    def later(self, f, inputs, dout):
        made = []

        def run(*_):
            if not made:
                made.append(backward_only(f, inputs, dout))
            return made[0]()
        return run

    # Losses, the optimizer, choosing tokens.

    def linear_cross_entropy_capped(self, d, t):
        return self.linear_cross_entropy(d, t, 30.0)

    def linear_cross_entropy(self, d, t, cap=0.0):
        n, c, v = d
        h, w, y = self.normal(n, c, dtype=t).requires_grad_(), self.normal(v, c, dtype=t, fan=c), self.ids(v, n)

        def losses(h, w, y):
            z = F.linear(h, w).float()
            return F.cross_entropy(cap * torch.tanh(z / cap) if cap else z, y, reduction="none")

        def with_gradient(f):
            def run(h, w, y):
                out = f(h, w, y)
                return out.detach(), torch.autograd.grad(out.sum(), h)[0]
            return run

        def plain(h, w, y):
            z = h @ w.t()
            slope = 1.0
            if cap:
                z = cap * torch.tanh(z / cap)
                slope = 1 - (z / cap) ** 2
            p = z.softmax(-1)
            rows = torch.arange(n, device=self.device)
            loss = -z.log_softmax(-1)[rows, y]
            p[rows, y] -= 1
            return loss, (p * slope) @ w
        peer = Peer([h, w, y], plain, {"linear, cross_entropy, backward": with_gradient(losses)})
        # The gradient is taken outside: its graph is compiled with the forward's.
        peer.compile = lambda: peer.calls.update({"torch.compile: linear, cross_entropy, backward": self.bind(
            with_gradient(torch.compile(losses, fullgraph=True, dynamic=False)), [h, w, y])})
        return peer

    def linear_kl_divergence_capped(self, d, t):
        return self.linear_kl_divergence(d, t, 30.0)

    def linear_kl_divergence_clipped(self, d, t):
        return self.linear_kl_divergence(d, t, clip=0.01)

    def linear_kl_divergence(self, d, t, cap=0.0, clip=float("inf")):
        n, c, v = d
        h, b, w, y = self.normal(n, c, dtype=t).requires_grad_(), self.normal(n, c, dtype=t), self.normal(v, c, dtype=t, fan=c), self.ids(v, n)

        def losses(h, b, w, y):
            def log_probs(x):
                z = F.linear(x, w).to(torch.promote_types(x.dtype, torch.float32))
                return F.log_softmax(cap * torch.tanh(z / cap) if cap else z, -1)
            log_p, log_q = log_probs(h), log_probs(b)
            return F.nll_loss(log_p, y, reduction="none"), F.kl_div(log_p, log_q, reduction="none", log_target=True).clamp(max=clip).sum(-1)

        def with_gradient(f):
            def run(h, b, w, y):
                nll, kl = f(h, b, w, y)
                return nll.detach(), kl.detach(), torch.autograd.grad((0.3 * nll + kl).sum(), h)[0]
            return run

        def plain(h, b, w, y):
            return with_gradient(losses)(h.detach().requires_grad_(), b, w, y)
        return Peer([h, b, w, y], plain, {"two linears, nll_loss, kl_div, backward": with_gradient(losses)})

    def linear_top_k_divergence_capped(self, d, t):
        return self.linear_top_k_divergence(d, t, 30.0)

    def linear_top_k_divergence(self, d, t, cap=0.0):
        n, c, v, k = d
        h, w, y = self.normal(n, c, dtype=t).requires_grad_(), self.normal(v, c, dtype=t, fan=c), self.ids(v, n)
        b = self.normal(n, c, dtype=torch.float32)
        log_q, ids = F.log_softmax(F.linear(b, w.float()), -1).topk(k, -1)
        q = torch.cat([log_q, torch.log1p(-log_q.exp().sum(-1, keepdim=True).clamp(max=1 - 1e-7))], -1)

        def losses(h, w, y, ids, q):
            z = F.linear(h, w).to(torch.promote_types(h.dtype, torch.float32))
            log_p = F.log_softmax(cap * torch.tanh(z / cap) if cap else z, -1)
            rest = log_p.scatter(-1, ids, float("-inf")).logsumexp(-1, keepdim=True)
            p = torch.cat([log_p.gather(-1, ids), rest], -1)
            return F.nll_loss(log_p, y, reduction="none"), F.kl_div(p, q, reduction="none", log_target=True).sum(-1)

        def with_gradient(f):
            def run(h, w, y, ids, q):
                nll, kl = f(h, w, y, ids, q)
                return nll.detach(), kl.detach(), torch.autograd.grad((0.3 * nll + kl).sum(), h)[0]
            return run

        def plain(h, w, y, ids, q):
            return with_gradient(losses)(h.detach().requires_grad_(), w, y, ids, q)
        return Peer([h, w, y, ids, q], plain, {"linear, nll_loss, kl_div, backward": with_gradient(losses)})

    @staticmethod
    def bind(f, inputs):
        return lambda: f(*inputs)

    def cross_entropy(self, d, t):
        n, v = d

        def plain(z, y):
            return z.exp().sum(-1).log() - z[torch.arange(n, device=self.device), y]
        return self.both([self.normal(*d, dtype=t), self.ids(v, n)], plain, "cross_entropy", lambda z, y: F.cross_entropy(z, y, reduction="none"))

    def adamw(self, d, _):
        p = torch.nn.Parameter(self.normal(*d, dtype=torch.float32))
        p.grad = self.normal(*d, dtype=torch.float32)
        optimizer = torch.optim.AdamW([p], lr=1e-2, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.1, fused=True)

        def step(p, g):
            optimizer.step()
            return p.detach()

        def plain(p, g):
            # The first step: the corrected moments are g and g².
            return p * (1 - 1e-3) - 1e-2 * g / (g.abs() + 1e-8)
        return Peer([p, p.grad], plain, {"AdamW(fused)": step})

    def grad_norm(self, d, _):
        return Peer(self.normals(1, d, torch.float32), lambda g: g.square().sum().sqrt(), {"vector_norm, item": lambda g: torch.linalg.vector_norm(g).item()})

    def sample_greedy(self, d, t):
        return Peer(self.normals(1, d, torch.float32), lambda x: x.argmax(-1), {"argmax, tolist": lambda x: x.argmax(-1).tolist()})

    def sample_top_k_top_p(self, d, t):
        def kept(x):
            top, ids = (x / 0.8).topk(50)
            p = top.softmax(-1)
            p = p.masked_fill(p.cumsum(-1) - p >= 0.9, 0)
            return p / p.sum(-1, keepdim=True), ids

        def plain(x):
            p = (x / 0.8).exp() * (x >= x.sort(-1, descending=True)[0][:, 49:50])
            p, _ = (p / p.sum(-1, keepdim=True)).sort(-1, descending=True)
            p = torch.where(p.cumsum(-1) - p < 0.9, p, 0)[:, :50]
            return p / p.sum(-1, keepdim=True)

        def run(x):
            p, ids = kept(x)
            ids.gather(1, p.multinomial(1)).tolist()
            return p
        return Peer(self.normals(1, d, torch.float32), plain, {"topk, softmax, cumsum, multinomial, tolist": run})

    def beam_step(self, d, _):
        b, k, v = d

        def f(x, own):
            scores, at = (x.log_softmax(-1) + own).view(b, -1).topk(2 * k)
            return scores, at // v, at % v

        def plain(x, own):
            scores, at = (x - x.exp().sum(-1, keepdim=True).log() + own).view(b, -1).sort(-1, descending=True)
            return scores[:, :2 * k], at[:, :2 * k] // v, at[:, :2 * k] % v
        return self.both([self.normal(b, k, v, dtype=torch.float32), self.normal(b, k, 1, dtype=torch.float32)], plain, "log_softmax, topk", f)

    # Q8_0: 32 values, a scale in f16 and 32 signed bytes.

    def dequantize_q8_0(self, d, t):
        scales, values = self.normal(d[0], d[1] // 32, 1, dtype=torch.float16), self.ids(255, d[0], d[1] // 32, 32).sub_(127).to(torch.int8)
        blocks = torch.cat([scales.view(torch.int8), values], -1).contiguous()

        def f(blocks):
            return (blocks[..., 2:].float() * blocks[..., :2].contiguous().view(torch.float16).float()).to(t).view(d)
        peer = self.both([blocks], None, "int8 * scale", f)
        peer.plain = lambda: (values.double() * scales.double()).view(d)
        return peer

    def quantize_q8_0(self, d, t):
        def f(x):
            x = x.view(d[0], -1, 32)
            scale = x.abs().amax(-1, keepdim=True) / 127
            values = torch.where(scale > 0, x / scale, 0).round().to(torch.int8)
            return torch.cat([scale.half().view(torch.int8), values], -1)

        def plain(x):
            x = x.view(d[0], -1, 32)
            return (x / (x.abs().amax(-1, keepdim=True) / 127)).round()
        peer = self.both(self.normals(1, d, t), plain, "amax, round", f)
        peer.compared = lambda got: got[..., 2:]
        return peer
