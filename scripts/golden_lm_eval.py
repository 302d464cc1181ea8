#!/usr/bin/env python3
"""Writes tests/golden/lm_eval/: rows in Belebele's and EXAMS' formats, questions and texts, with lm-eval's log-likelihoods, choices and
sample files.

HF_HUB_OFFLINE=1 golden_lm_eval.py, with torch, transformers and lm_eval
The model is assets/quickstart/model (it knows little: the choices are nearly random, which is what a parity test needs). Belebele's prompt
is rendered from lm-eval's own task file; EXAMS has no task there, so that its prompt is given to lm-eval's model as it is. The sample files
are what `lm_eval --log_samples` writes for four tasks over these rows.
"""
import json
import random
import tempfile
from pathlib import Path

import lm_eval
import torch
import transformers
import yaml
from lm_eval.api.instance import Instance
from lm_eval.loggers import EvaluationTracker
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.utils import apply_template

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "tests" / "golden" / "lm_eval"
WORDS = "baker doctor teacher farmer sailor a dog a cat the city the island rice bread cheese water milk tea rojo azul el pan la sopa".split()


def rows(rng):
    texts = json.loads(json.dumps([json.loads(line) for line in (ROOT / "assets/quickstart/world/test.en.jsonl").read_text().splitlines()]))
    belebele, exams = [], []
    for i in range(16):
        row = rng.choice(texts)
        choices = [rng.choice(WORDS) + " " + rng.choice(WORDS) for _ in range(4)]
        passage = " ".join(r["answers"][0] for r in rng.sample(texts, 1 + i % 3))
        belebele.append({"link": f"made-up/{i}", "question_number": i, "flores_passage": passage, "question": row["question"] + " " * (i % 2),
                         **{f"mc_answer{k + 1}": c for k, c in enumerate(choices)}, "correct_answer_num": str(1 + rng.randrange(4)), "dialect": "eng_Latn"})
        n = 3 + i % 3
        exams.append({"id": f"e-{i}", "question": {"stem": row["question"], "choices": [
            {"text": rng.choice(WORDS) + " " * (k % 2) + "s" * (k % 3), "label": "ABCDE"[k], "para": ""} for k in range(n)]},
            "answerKey": "ABCDE"[rng.randrange(n)]})
    return belebele, exams


def score(lm, asked):
    """Log-likelihoods of (prompt, continuations) by row."""
    flat = [Instance("loglikelihood", {}, (p, c), 0) for p, cs in asked for c in cs]
    found = iter(lm.loglikelihood(flat, disable_tqdm=True))
    return [[next(found)[0] for _ in cs] for _, cs in asked]


def tasks(template):
    """Task files of lm-eval over the rows beside this golden file."""
    mean = lambda name: {"metric": name, "aggregation": "mean", "higher_is_better": True}
    choice = {"output_type": "multiple_choice", "metric_list": [mean("acc"), mean("acc_norm")]}
    return {
        "belebele": {**choice, "file": "belebele.jsonl", **{k: template[k] for k in ("doc_to_text", "doc_to_choice", "doc_to_target")}},
        "exams": {**choice, "file": "exams.jsonl", "doc_to_text": "Question: {{question['stem'].strip()}}\nAnswer:",
                  "doc_to_choice": "{{question['choices'] | map(attribute='text') | map('trim') | list}}",
                  "doc_to_target": "{{['A', 'B', 'C', 'D', 'E'].index(answerKey)}}"},
        "qa": {"file": "qa.jsonl", "output_type": "generate_until", "doc_to_text": "{{question}}", "doc_to_target": "{{answers[0]}}",
               "generation_kwargs": {"until": ["\n"], "max_gen_toks": 12, "do_sample": False},
               "metric_list": [mean("exact_match"), {"metric": "bleu"}, {"metric": "chrf"}]},
        "text": {"file": "text.txt", "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
                 "metric_list": [{"metric": "bits_per_byte"}]},
    }


def sample_files(lm, template):
    """The rows that lm-eval writes with --log_samples."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        names = []
        for name, task in tasks(template).items():
            file = str(OUT / task.pop("file"))
            task |= {"task": f"golden_{name}", "test_split": "test", "dataset_path": "text" if name == "text" else "json",
                     "dataset_kwargs": {"data_files": {"test": file}}}
            (folder / f"{name}.yaml").write_text(json.dumps(task))
            names.append(task["task"])
        found = lm_eval.simple_evaluate(model=lm, tasks=names, task_manager=TaskManager(include_path=str(folder)), log_samples=True)
        tracker = EvaluationTracker(output_path=str(folder / "out"))
        tracker.general_config_tracker.model_name_sanitized = "model"
        tracker.date_id = "date"
        out = {}
        for name in names:
            tracker.save_results_samples(name, found["samples"][name])
            lines = (folder / "out" / "model" / f"samples_{name}_date.jsonl").read_text().rstrip("\n").split("\n")
            out[name.removeprefix("golden_")] = [json.loads(line) for line in lines[:5]]
        return out


def main():
    rng = random.Random(4)
    belebele, exams = rows(rng)
    OUT.mkdir(parents=True, exist_ok=True)
    world = [json.loads(line) for line in (ROOT / "assets/quickstart/world/test.es.jsonl").read_text().splitlines()]
    qa = [{"id": r["id"], "question": r["question"], "answers": r["answers"][:1]} for r in world[:5]]
    # What becomes of text in hashes: escapes, numbers, nested values. (All rows have the same keys: the loader would add those that lack.)
    for i, row in enumerate(qa):
        row |= {"note": 'a "quote", a\ttab, \u2028, \x7f, \\ and 日本' if i == 1 else "", "numbers": [i, -2, 2.5, True, None], "empty": [[], {}, ""]}
    (OUT / "qa.jsonl").write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in qa))
    (OUT / "text.txt").write_text("".join(r["answers"][0] + "\n" for r in world[:4]))
    for name, data in (("belebele", belebele), ("exams", exams)):
        (OUT / f"{name}.jsonl").write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in data))
    path = next(Path(lm_eval.__file__).parent.glob("tasks/belebele/_default_template_yaml"))
    loader = yaml.SafeLoader
    loader.add_multi_constructor("!", lambda *_: None)
    template = yaml.load(path.read_text(), loader)
    letters = template["doc_to_choice"]
    letters = json.loads(letters.replace("'", '"')) if isinstance(letters, str) else letters
    lm = HFLM(pretrained=str(ROOT / "assets/quickstart/model"), dtype="float32", device="cpu", batch_size=1)
    asked = {
        "belebele": [(apply_template(template["doc_to_text"], r), [" " + c for c in letters]) for r in belebele],
        "exams": [(f"Question: {r['question']['stem'].strip()}\nAnswer:", [" " + c["text"].strip() for c in r["question"]["choices"]]) for r in exams],
    }
    golden = {"made-by": "scripts/golden_lm_eval.py",
              "versions": {"lm_eval": lm_eval.__version__, "transformers": transformers.__version__, "torch": torch.__version__}}
    for name, prompts in asked.items():
        scores = score(lm, prompts)
        golden[name] = [{"prompt": p, "log-likelihoods": s, "choice": max(range(len(s)), key=lambda i: (s[i], -i)),
                         "choice-norm": max(range(len(s)), key=lambda i: (s[i] / len(c[i].strip()), -i))}
                        for (p, c), s in zip(prompts, scores)]
    golden["sample-files"] = sample_files(lm, template)
    (OUT / "golden.json").write_text(json.dumps(golden, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
