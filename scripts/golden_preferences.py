#!/usr/bin/env python3
"""Writes tests/golden/preferences.safetensors: TRL's DPO, ORPO and KTO trainers on tests/golden/models/llama-tied with an adapter.

pip install torch==2.15.0 transformers==5.24.0 peft==0.21.2 trl==1.16.0 safetensors
The file has
  {pairs,labels}.{tokens,cu_seqlens,weights}   documents; weights[i] is 1 where token i belongs to a reply. Of pairs a chosen and a rejected one by turns; of
                                               labels a reply and, behind it, the reply that TRL pairs with its prompt to estimate the KL term
  labels.desirable                             1 or 0 for each row
  param.NAME                                   the adapter before the first step
  reference.{pairs,labels}                     log-probabilities of the documents' replies without the adapter
  CASE.{losses,grad.NAME,METRIC}               losses of 5 AdamW steps (lr 0.01, all rows in each), gradients and metrics of the first
CASE `conservative` is no trainer's: TRL has dropped label smoothing of its sigmoid loss, so that its gradients are PyTorch's own of the formula.
"""
import logging
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn.functional as F
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"
VOCAB, EOS, STEPS = 96, 2, 5
METRICS = ["rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected", "kl", "nll_loss",
           "log_odds_ratio", "log_odds_chosen"]
# (prompt, chosen, rejected): tokens, and as many tokens again.
LENGTHS = [(3, 4, 7), (5, 6, 6), (2, 9, 3), (6, 2, 8), (4, 5, 5), (3, 8, 2)]
# Which reply of each row KTO is given.
DESIRABLE = [1, 0, 0, 1, 0, 1]


def rows():
    g = torch.Generator().manual_seed(11)
    draw = lambda n: torch.randint(3, VOCAB, (n,), generator=g).tolist()
    return [(draw(p), draw(c) + [EOS], draw(r) + [EOS]) for p, c, r in LENGTHS]


def text(ids):
    """With a space behind each but the last end token, so that prompt and reply are the words of both."""
    return "".join(f"<{i}>" + ("" if i == EOS else " ") for i in ids)


def tokenizer():
    words = Tokenizer(models.WordLevel({f"<{i}>": i for i in range(VOCAB)}, unk_token="<0>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token=f"<{EOS}>", pad_token="<1>", unk_token="<0>")


def model():
    base = AutoModelForCausalLM.from_pretrained(GOLDEN / "models" / "llama-tied", dtype=torch.float32, attn_implementation="eager")
    return get_peft_model(base, LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM"))


def moved(lora):
    """The same model with an adapter that changes it: TRL's reference is a copy of the adapter as it was, that is, the base."""
    g = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name, p in trained(lora).items():
            p.copy_(torch.randn(p.shape, generator=g) * (0.15 if "lora_B" in name else 0.2))
    return lora


def trained(m):
    return {n.replace(".default", "").removesuffix(".weight"): p for n, p in m.named_parameters() if p.requires_grad and ".default." in n}


def logps(m, documents):
    """Log-probabilities of the replies, each document alone."""
    out = []
    for tokens, mask in documents:
        ids = torch.tensor([tokens])
        logp = torch.log_softmax(m(input_ids=ids).logits[0, :-1].float(), -1)
        logp = logp[torch.arange(len(tokens) - 1), ids[0, 1:]]
        out.append((logp * torch.tensor(mask[1:])).sum())
    return torch.stack(out)


def watched(kind):
    class Watched(kind):
        losses, first, grads = [], {}, {}

        def compute_loss(self, *args, **kwargs):
            loss = super().compute_loss(*args, **kwargs)
            self.losses.append(float(loss.detach()))
            if not self.first:
                stored = self._metrics["train"] if hasattr(self, "_metrics") else self._stored_metrics["train"]
                self.first.update({k: torch.tensor(float(v[0])) for k, v in stored.items() if k in METRICS})
            return loss

        def training_step(self, *args, **kwargs):
            loss = super().training_step(*args, **kwargs)
            if not self.grads:
                self.grads.update({n: p.grad.clone() for n, p in trained(self.model).items()})
            return loss

    return Watched


def run(kind, config, data, **options):
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as out:
        args = config(output_dir=out, per_device_train_batch_size=len(data), num_train_epochs=STEPS, learning_rate=0.01, lr_scheduler_type="constant",
                      warmup_steps=0, max_grad_norm=1.0, weight_decay=0.0, optim="adamw_torch", gradient_checkpointing=False, bf16=False, use_cpu=True,
                      save_strategy="no", report_to=[], max_length=None if config is not ORPOConfig else 64, disable_tqdm=True, logging_steps=1,
                      **options)
        trainer = watched(kind)(model=model(), args=args, train_dataset=Dataset.from_list(data), processing_class=tokenizer())
        moved(trainer.model)
        trainer.train()
    assert len(trainer.losses) == STEPS, trainer.losses
    print(kind.__name__, options, trainer.losses, trainer.first, file=sys.stderr)
    return {"losses": torch.tensor(trainer.losses)} | {f"grad.{n}": g for n, g in trainer.grads.items()} | trainer.first


def conservative(documents, reference, beta, epsilon):
    """DPO's sigmoid loss with label smoothing."""
    m = moved(model())
    optimizer = torch.optim.AdamW(trained(m).values(), lr=0.01, weight_decay=0.0)
    out, losses = {}, []
    for step in range(STEPS):
        optimizer.zero_grad()
        margin = beta * (logps(m, documents) - reference).reshape(-1, 2)
        margin = margin[:, 0] - margin[:, 1]
        loss = (-(1 - epsilon) * F.logsigmoid(margin) - epsilon * F.logsigmoid(-margin)).mean()
        losses.append(loss.item())
        loss.backward()
        if step == 0:
            out |= {f"grad.{n}": p.grad.clone() for n, p in trained(m).items()}
        torch.nn.utils.clip_grad_norm_(list(trained(m).values()), 1.0)
        optimizer.step()
    return out | {"losses": torch.tensor(losses)}


def main():
    logging.disable(logging.WARNING)
    all_rows = rows()
    for prompt, *replies in all_rows:
        assert all(tokenizer()(text(prompt) + text(r))["input_ids"] == prompt + r for r in replies), "other tokens than meant"
    document = lambda prompt, reply: (prompt + reply, [0] * len(prompt) + [1] * len(reply))
    pairs = [document(p, reply) for p, c, r in all_rows for reply in (c, r)]
    said = [c if d else r for (_, c, r), d in zip(all_rows, DESIRABLE)]
    labels = [document(p, reply) for i, (p, _, _) in enumerate(all_rows) for reply in (said[i], said[i - 1])]
    golden = {"labels.desirable": torch.tensor(DESIRABLE).int()}
    base = moved(model())
    golden |= {f"param.{n}": p.detach().clone() for n, p in trained(base).items()}
    for name, documents in [("pairs", pairs), ("labels", labels)]:
        tokens = [t for tokens, _ in documents for t in tokens]
        golden[f"{name}.tokens"] = torch.tensor(tokens).int()
        golden[f"{name}.cu_seqlens"] = torch.tensor([0] + [len(tokens) for tokens, _ in documents]).cumsum(0).int()
        golden[f"{name}.weights"] = torch.tensor([float(w) for _, mask in documents for w in mask])
        with torch.no_grad(), base.disable_adapter():
            golden[f"reference.{name}"] = logps(base, documents)
    of_pairs = [{"prompt": text(p), "chosen": text(c), "rejected": text(r)} for p, c, r in all_rows]
    of_labels = [{"prompt": text(p), "completion": text(reply), "label": bool(d)} for (p, _, _), reply, d in zip(all_rows, said, DESIRABLE)]
    cases = {"sigmoid": dict(loss_type=["sigmoid"], beta=0.3), "ipo": dict(loss_type=["ipo"], beta=0.5), "hinge": dict(loss_type=["hinge"], beta=0.2),
             "robust": dict(loss_type=["robust"], beta=0.2, label_smoothing=0.1)}
    results = {name: run(DPOTrainer, DPOConfig, of_pairs, **options) for name, options in cases.items()}
    results["conservative"] = conservative(pairs, golden["reference.pairs"], 0.3, 0.2)
    results["orpo"] = run(ORPOTrainer, ORPOConfig, of_pairs, beta=0.4)
    results["kto"] = run(KTOTrainer, KTOConfig, of_labels, beta=0.2, desirable_weight=1.0, undesirable_weight=0.7)
    golden |= {f"{case}.{k}": v for case, result in results.items() for k, v in result.items()}
    golden = {k: (v.reshape(1) if v.ndim == 0 else v).contiguous() for k, v in golden.items()}
    versions = {name: version(name) for name in ("torch", "transformers", "peft", "trl")}
    save_file(golden, GOLDEN / "preferences.safetensors", metadata=versions)


if __name__ == "__main__":
    main()
