#!/usr/bin/env python3
"""Splits questions into those that are learnt and those that are held out, and translates the latter; makes a dictionary of single words by the same translator:
held_out_instructions.py QUESTIONS.jsonl WORDS OUT es=eng-spa ca=eng-cat gl=en-gl

OUT/learnt.en.jsonl, OUT/held-out.en.jsonl (of every fourth row those with answers of at most 60 words) and OUT/held-out.LL.jsonl, by Apertium, paragraph by paragraph: references are so translated,
too, and say what an answer is about, not how a speaker would put it. OUT/words.en-LL.tsv: the words of the file WORDS, one a line, that Apertium knows."""
import json
import subprocess
import sys
from pathlib import Path


def translated(texts, mode):
    """One paragraph a line, line in, line out; words that are not known keep their mark *."""
    lines = [line.strip() for text in texts for line in text.split("\n")]
    reply = subprocess.run(["apertium", "-f", "txt", mode], input="".join(line + "\n\n" for line in lines), capture_output=True, text=True, check=True).stdout
    translations = reply.split("\n")[: 2 * len(lines) : 2]
    if len(translations) != len(lines) or any(not line and translation.strip() for line, translation in zip(lines, translations)):
        sys.exit(f"apertium {mode} did not answer paragraph by paragraph")
    rest = iter(translations)
    return ["\n".join(next(rest).strip() for _ in text.split("\n")) for text in texts]


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def main():
    rows = [row for row in map(json.loads, open(sys.argv[1], encoding="utf-8")) if any(map(str.isalnum, row["output"]))]
    words, out = open(sys.argv[2], encoding="utf-8").read().split(), Path(sys.argv[3])
    out.mkdir(parents=True, exist_ok=True)
    held_out = [row for row in rows[::4] if 0 < len(row["output"].split()) <= 60]
    ids = {row["id"] for row in held_out}
    write(out / "learnt.en.jsonl", [row for row in rows if row["id"] not in ids])
    write(out / "held-out.en.jsonl", held_out)
    for language, _, mode in (argument.partition("=") for argument in sys.argv[4:]):
        columns = {name: [text.replace("*", "") for text in translated([row.get(name, "") for row in held_out], mode)] for name in ("instruction", "input", "output")}
        write(out / f"held-out.{language}.jsonl", [{**row, **{name: column[i] for name, column in columns.items()}} for i, row in enumerate(held_out)])
        pairs = [(word, word_there.lower()) for word, word_there in zip(words, translated(words, mode)) if word_there and not set("*#@") & set(word_there) and word_there.lower() != word]
        (out / f"words.en-{language}.tsv").write_text("".join(f"{word}\t{there}\n" for word, there in pairs), encoding="utf-8")


if __name__ == "__main__":
    main()
