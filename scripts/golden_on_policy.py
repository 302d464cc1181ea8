#!/usr/bin/env python3
"""Writes tests/golden/on_policy.safetensors: steps of on-policy self-distillation on tests/golden/models/llama-tied with an adapter, from fixed answers.

pip install torch==2.15.0 transformers==5.24.0 peft==0.21.2 trl==1.16.0 safetensors
The student reads its prompt with an answer, the teacher, the same model with its adapter off (peft's disable_adapter), another prompt with the same answer. The loss is
F.kl_div of the log-probabilities at the answer's positions, each term of the vocabulary clamped (as COPSD's published trainer has it at beta 0), summed, and averaged over
the positions; with `sentences` over each answer's positions first. Where an answer has ended, the position that predicts its end counts too.
  {student,teacher,answer}.{tokens,cu_seqlens}, answer.ended   the documents
  param.NAME                                                    the adapter before the first step
  CASE.{losses,kl,clipped,grad.NAME}, CASE.how                  losses of 5 AdamW steps (lr 0.01, all answers in each); of the first: the mean divergence, the share of
                                                                positions with a clamped term, gradients; how: the clip (0: none), 1 for sentences
"""
import sys
from importlib.metadata import version

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from golden_preferences import GOLDEN, STEPS, VOCAB, model, moved, trained

# Tokens of the student's prompt, the teacher's, the answer, and whether that has ended.
ROWS = [(3, 9, 4, 1), (5, 7, 6, 0), (2, 12, 0, 1), (6, 8, 9, 1), (4, 4, 1, 0), (7, 15, 5, 1)]
CASES = {"whole": (0.0, 0), "clipped": (0.02, 0), "sentences": (0.6, 1)}


def rows():
    g = torch.Generator().manual_seed(21)
    draw = lambda n: torch.randint(3, VOCAB, (n,), generator=g).tolist()
    return [(draw(s), draw(t), draw(a), bool(ended)) for s, t, a, ended in ROWS]


def log_probs(m, prompt, answer, ended):
    """Of what comes next, at each position that is learnt."""
    first = len(prompt) - 1
    logits = m(input_ids=torch.tensor([prompt + answer])).logits[0].float()
    return F.log_softmax(logits[first:first + len(answer) + ended], -1)


def terms(m, row):
    student, teacher, answer, ended = row
    with torch.no_grad(), m.disable_adapter():
        log_q = log_probs(m, teacher, answer, ended)
    return F.kl_div(log_probs(m, student, answer, ended), log_q, reduction="none", log_target=True)


def run(all_rows, clip, sentences):
    m = moved(model())
    optimizer = torch.optim.AdamW(trained(m).values(), lr=0.01, weight_decay=0.0)
    out, losses = {"how": torch.tensor([clip, float(sentences)])}, []
    for step in range(STEPS):
        optimizer.zero_grad()
        found = [terms(m, row) for row in all_rows]
        clamped = [t.clamp(max=clip) if clip else t for t in found]
        loss = torch.stack([t.sum(-1).mean() for t in clamped]).mean() if sentences else torch.cat(clamped).sum(-1).mean()
        losses.append(loss.item())
        loss.backward()
        if step == 0:
            out |= {f"grad.{n}": p.grad.clone() for n, p in trained(m).items()}
            whole = torch.cat(found).detach()
            out["clipped"] = (whole > (clip or float("inf"))).any(-1).float().mean()
            of_rows = torch.stack([t.detach().sum(-1).mean() for t in found])
            out["kl"] = of_rows.mean() if sentences else whole.sum(-1).mean()
        torch.nn.utils.clip_grad_norm_(list(trained(m).values()), 1.0)
        optimizer.step()
    print(clip, sentences, losses, float(out["kl"]), float(out["clipped"]), file=sys.stderr)
    return out | {"losses": torch.tensor(losses)}


def main():
    all_rows = rows()
    golden = {"answer.ended": torch.tensor([int(r[3]) for r in all_rows]).int()}
    for i, name in enumerate(["student", "teacher", "answer"]):
        golden[f"{name}.tokens"] = torch.tensor([t for r in all_rows for t in r[i]]).int()
        golden[f"{name}.cu_seqlens"] = torch.tensor([0] + [len(r[i]) for r in all_rows]).cumsum(0).int()
    golden |= {f"param.{n}": p.detach().clone() for n, p in trained(moved(model())).items()}
    for name, how in CASES.items():
        golden |= {f"{name}.{k}": v for k, v in run(all_rows, *how).items()}
    golden = {k: (v.reshape(1) if v.ndim == 0 else v).contiguous() for k, v in golden.items()}
    versions = {name: version(name) for name in ("torch", "transformers", "peft")}
    save_file(golden, GOLDEN / "on_policy.safetensors", metadata=versions)


if __name__ == "__main__":
    main()
