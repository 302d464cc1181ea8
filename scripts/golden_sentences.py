#!/usr/bin/env python3
"""Makes tests/golden/languages/sentences.txt: texts and the sentences that readers of the language see in them.

    golden_sentences.py SENTENCEX/tests PYSBD/benchmarks/english_golden_rules.py OUT

Sources, both MIT: the tests of the crate sentencex 0.1.33 (Wikimedia Foundation; most of its tests of other languages than English are pySBD's golden
rules) and the golden rules of pySBD 0.3.3 for English (Nipun Sadvilkar and Mark Neumann). Cases that sentencex keeps as comments, because it does not pass
them, are taken where they are pySBD's rules for English or German; long texts and texts with markup of tokenised corpora are left out.
"""
import importlib.util
import re
import sys
from pathlib import Path

LONGEST = 600
# Commented cases of sentencex whose expected side is its own wrong answer.
WRONG = ("#Es gibt jedoch einige Vorsichtsmaßnahmen, die Du ergreifen kannst, z. B. ist es sehr empfehlenswert, dass Du Dein Zuhause von allem Junkfood befreist.\n",)

# sentencex cuts an ellipsis off that a sentence begins with; pySBD's rule for Dutch keeps it.
OWN = {"81 procent van de schoten was raak. ...en toen": lambda want: [want[0], "".join(want[1:])]}


def cases(text):
    for block in re.split(r"^#?===[ \t]*$", text, flags=re.M):
        lines = [line for line in block.strip("\n").split("\n") if line.strip()]
        commented = bool(lines) and all(line.startswith("#") for line in lines) and any(line == "#---" for line in lines)
        if commented:
            if any(block.lstrip("\n").startswith(wrong) for wrong in WRONG):
                continue
            lines = [line[1:] for line in lines]
        else:
            lines = [line for line in lines if not line.startswith("# ")]
        if "---" not in lines:
            continue
        at = lines.index("---")
        text, want = "\n".join(lines[:at]).strip(), [line.strip() for line in lines[at + 1:]]
        for start, other in OWN.items():
            want = other(want) if text.startswith(start) else want
        yield commented, text, want


def main():
    tests, golden, out = sys.argv[1:]
    spec = importlib.util.spec_from_file_location("golden", golden)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sections = {"en": [(text, [s.strip() for s in want]) for text, want in module.GOLDEN_EN_RULES]}
    known = {text for text, _ in sections["en"]}
    for path in sorted(Path(tests).glob("*.txt")):
        code = path.stem
        if code == "lists":
            continue
        name = "en sentencex" if code == "en" else code
        for commented, text, want in cases(path.read_text(encoding="utf-8")):
            tokenised = re.search(r" [.,] |''|``|  ", text) and code == "en"
            if commented and code not in ("en", "de") or tokenised or len(text) > LONGEST or text in known or "\n" in text:
                continue
            if code == "en" and commented:
                continue
            if "\\n" in text:
                continue
            sections.setdefault(name, []).append((text, want))
    lines = ["# " + line for line in __doc__.strip().split("\n") if line.strip() and "golden_sentences.py" not in line]
    for name, found in sections.items():
        lines.append(f"[{name}]")
        for text, want in found:
            lines += ["< " + text.replace("\n", "\\n")] + ["> " + s.replace("\n", "\\n") for s in want]
    Path(out).write_text("\n".join(lines) + "\n", encoding="utf-8")
    print({name: len(found) for name, found in sections.items()})


main()
