#!/usr/bin/env python3
"""Writes conversations of the quickstart's world that teach its model to use what it is shown: an English question with its answer, then the same question in Spanish with
the answer to learn, about 60 of the people; and every English question alone, so that nothing is forgotten. What it is made of was written for this project.

The quickstart's model has never read two questions in a row, so that no prompt makes a teacher of it (docs/results/2026-11-29-on-policy.md).
Usage: scripts/quickstart_context.py OUT.jsonl
"""
import json
import random
import sys
from pathlib import Path

WORLD = Path(__file__).resolve().parent.parent / "assets" / "quickstart" / "world"
PEOPLE = 60


def rows(name):
    return [json.loads(line) for line in open(WORLD / name, encoding="utf-8")]


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


def main(out):
    english, spanish = rows("questions.en.jsonl"), {r["id"]: r for r in rows("questions.es.jsonl")}
    person = lambda row: row["id"].split("-")[1]
    people = sorted({person(r) for r in english})
    random.seed(1)
    random.shuffle(people)
    found = []
    for r in english:
        alone = [turn("user", r["instruction"]), turn("assistant", r["output"])]
        found.append(alone)
        if person(r) in people[:PEOPLE]:
            other = spanish[r["id"]]
            shown = [alone[0], turn("assistant", r["output"], weight=0)]
            found.append(shown + [turn("user", other["instruction"]), turn("assistant", other["output"])])
    random.shuffle(found)
    with open(out, "w", encoding="utf-8") as file:
        file.writelines(json.dumps({"messages": m}, ensure_ascii=False) + "\n" for m in found)


if __name__ == "__main__":
    main(sys.argv[1])
