"""tests/golden/kl.safetensors: the loss that keeps a language, weight (hard nll + soft KL(base || student)) through one head, as PyTorch computes it in f32, and in
f64 from the same numbers (kl64, clipped64): of two models that are near each other PyTorch's own f32 divergence is off by more than 1e-5. With a clip each term of the sum over the vocabulary counts up to it.

Needs torch, safetensors. Usage: python scripts/golden_kl.py
"""
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

stored = {}


def case(name, n, c, v, distance, hard, soft, cap=0.0, clip=0.0):
    g = torch.Generator().manual_seed(len(name) + n)
    normal = lambda *dims: torch.randn(*dims, generator=g)
    hidden, head = normal(n, c).requires_grad_(), normal(v, c) / c**0.5 * 3
    base = (hidden + distance * normal(n, c)).detach()
    targets, weights = torch.arange(n) * 7 % v, torch.tensor([1.0, 0.5, 2.0]).repeat(n)[:n]

    def log_probs(states):
        z = F.linear(states, head.to(states.dtype))
        return F.log_softmax(cap * torch.tanh(z / cap) if cap else z, -1)
    log_p, log_q = log_probs(hidden), log_probs(base)
    nll = F.nll_loss(log_p, targets, reduction="none")
    most = clip or float("inf")
    terms = F.kl_div(log_p, log_q, reduction="none", log_target=True)
    kl, clipped = terms.sum(-1), terms.clamp(max=most).sum(-1)
    (dhidden,) = torch.autograd.grad((weights * (hard * nll + soft * clipped)).sum(), hidden)
    wide = [log_probs(x.detach().double()) for x in (hidden, base)]
    terms64 = F.kl_div(*wide, reduction="none", log_target=True)
    kl64, clipped64 = terms64.sum(-1).float(), terms64.clamp(max=most).sum(-1).float()
    print(name, "PyTorch's f32 divergence is off by", float((kl - kl64).norm() / kl64.norm()))
    mixed = torch.tensor([hard, soft, cap, clip])
    values = dict(hidden=hidden, base=base, head=head, weights=weights, nll=nll, kl=kl, kl64=kl64, clipped64=clipped64, dhidden=dhidden, mixed=mixed)
    stored.update({f"{name}.{k}": x.detach().contiguous() for k, x in values.items()})
    stored[f"{name}.targets"] = targets.int()


case("near", 11, 24, 131, 0.05, 0.0, 1.0)
case("far", 19, 40, 301, 1.0, 1.0, 0.5)
case("capped", 9, 24, 77, 0.5, 0.25, 2.0, cap=3.0)
case("clipped", 13, 24, 131, 1.0, 0.0, 1.0, clip=0.02)
case("clipped_capped", 11, 24, 77, 0.5, 0.5, 1.5, cap=3.0, clip=0.005)
save_file(stored, "tests/golden/kl.safetensors", metadata={"torch": torch.__version__, "script": "scripts/golden_kl.py"})
print(len(stored), "tensors", torch.__version__, {k: float(x.mean()) for k, x in stored.items() if k.endswith(".kl")})
