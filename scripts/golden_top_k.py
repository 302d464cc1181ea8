"""tests/golden/top_k.safetensors: the likeliest tokens of a teacher, and the forward divergence from them with all other tokens as one bucket, weight (hard nll + soft KL_k(base || student))
through one head, as PyTorch computes it in f64 by autograd from f32 numbers.

KL_k is F.kl_div of two distributions over k + 1 outcomes: the teacher's k likeliest tokens, and the rest, whose log-probability is the logsumexp of what is left.
Needs torch, safetensors. Usage: python scripts/golden_top_k.py
"""
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

stored = {}


def case(name, n, c, v, k, distance, hard, soft, cap=0.0, sharp=3.0):
    g = torch.Generator().manual_seed(len(name) + n)
    normal = lambda *dims: torch.randn(*dims, generator=g)
    hidden, head = normal(n, c), normal(v, c) / c**0.5 * sharp
    base = hidden + distance * normal(n, c)
    targets, weights = torch.arange(n) * 7 % v, torch.tensor([1.0, 0.5, 2.0]).repeat(n)[:n]
    student = hidden.double().requires_grad_()

    def log_probs(states):
        z = F.linear(states, head.double())
        return F.log_softmax(cap * torch.tanh(z / cap) if cap else z, -1)

    def buckets(log_p, ids):
        kept = log_p.gather(-1, ids)
        left = log_p.scatter(-1, ids, float("-inf"))
        return torch.cat([kept, left.logsumexp(-1, keepdim=True)], -1) if k < v else kept
    log_p, log_q = log_probs(student), log_probs(base.double())
    ids = log_q.topk(k, -1).indices.sort(-1).values
    p, q = buckets(log_p, ids), buckets(log_q, ids)
    nll, kl = F.nll_loss(log_p, targets, reduction="none"), F.kl_div(p, q, reduction="none", log_target=True).sum(-1)
    (dhidden,) = torch.autograd.grad((weights.double() * (hard * nll + soft * kl)).sum(), student)
    rest = q[:, -1].exp() if k < v else torch.zeros(n)
    values = dict(hidden=hidden, base=base, head=head, weights=weights, nll=nll, kl=kl, dhidden=dhidden, log_probs=q[:, :k], rest=rest,
                  how=torch.tensor([hard, soft, cap, float(k)]))
    stored.update({f"{name}.{key}": x.detach().float().contiguous() for key, x in values.items()})
    stored[f"{name}.targets"], stored[f"{name}.ids"] = targets.int(), ids.int().flatten()
    print(name, "rest", float(rest.mean()), "kl", float(kl.mean()))


case("near", 11, 24, 131, 8, 0.05, 0.0, 1.0)
case("far", 19, 40, 301, 64, 1.0, 1.0, 0.5)
case("capped", 9, 24, 77, 5, 0.5, 0.25, 2.0, cap=3.0)
case("sure", 7, 24, 131, 4, 1.0, 0.0, 1.0, sharp=20.0)
case("one", 6, 24, 77, 1, 0.5, 0.0, 1.0)
case("everything", 5, 24, 53, 53, 0.5, 0.5, 1.0)
save_file(stored, "tests/golden/top_k.safetensors", metadata={"torch": torch.__version__, "script": "scripts/golden_top_k.py"})
print(len(stored), "tensors", torch.__version__)
