#!/usr/bin/env python3
"""report.json and report.md from what scripts/gpu_session.sh left: python scripts/gpu_report.py DIR [DIR ..]

Several DIRs are parts of one session on one card; both files go to the first. For benches/results: copy them as DATE-CARD.json and DATE-CARD.md.
Lines that a run was cut off in are left out and counted. Only the standard library."""
import csv
import json
import pathlib
import re
import sys

PARTS = ["correctness", "calibration", "quickstart", "parity", "ranks", "kernels", "steps", "generation", "sanitizers", "mutants", "ncu"]
# Of ncu's metrics, those that say what a kernel waits for.
METRICS = ["Duration", "Compute (SM) Throughput", "DRAM Throughput", "L1/TEX Cache Throughput", "L2 Cache Throughput", "L2 Hit Rate", "Mem Busy",
           "Achieved Occupancy", "Theoretical Occupancy", "Registers Per Thread", "No Eligible", "Warp Cycles Per Issued Instruction"]


def lines(path):
    """The whole lines of a JSONL file, and the number of others."""
    whole, broken = [], 0
    for line in path.read_text(errors="replace").splitlines():
        try:
            whole.append(json.loads(line))
        except json.JSONDecodeError:
            broken += 1
    return whole, broken


def counters(path):
    """{kernel: {metric: value with unit}} of an ncu details page; of a kernel that ran several times, the last run."""
    found = {}
    text = [line for line in path.read_text(errors="replace").splitlines() if line.startswith('"')]
    for row in csv.DictReader(text):
        if row.get("Metric Name") in METRICS:
            value = f"{row.get('Metric Value', '')} {row.get('Metric Unit', '')}".strip()
            found.setdefault(row.get("Kernel Name", "?"), {})[row["Metric Name"]] = value
    return found


def profile(path):
    """(pattern, emulator's wavefronts and sectors, the chip's) from the log of the test program under ncu: prints and kernels come in the same order."""
    text = path.read_text(errors="replace").splitlines()
    said = [re.search(r"profile: (.*): (\d+) wavefronts, (\d+) sectors", line) for line in text]
    said = [(m[1], int(m[2]), int(m[3])) for m in said if m]
    head = next((i for i, line in enumerate(text) if line.startswith('"ID"')), len(text))
    number = lambda row, part: sum(int(float(v.replace(",", ""))) for k, v in row.items() if k and part in k and v)
    rows = [r for r in csv.DictReader(line for line in text[head:] if line.startswith('"')) if (r.get("ID") or "").isdigit()]
    chip = [(number(r, "wavefronts_mem_shared"), number(r, "sectors_pipe_lsu")) for r in rows]
    return [(what, w, s, *(chip[i] if i < len(chip) else ("-", "-"))) for i, (what, w, s) in enumerate(said)]


def read(folders):
    machines, parts, broken = [], {}, 0
    for folder in folders:
        if (folder / "machine.json").exists():
            machines.append(json.loads((folder / "machine.json").read_text()))
        for part in PARTS + ["summary"]:
            path = folder / f"{part}.jsonl"
            if path.exists():
                whole, more = lines(path)
                broken += more
                for row in whole:
                    if part == "calibration" and (folder / "calibration.md").exists():
                        row["page"] = (folder / "calibration.md").read_text()
                    if "profile" in row and (folder / row["profile"]).exists():
                        row["profile"] = profile(folder / row["profile"])
                    if part == "ncu" and "csv" in row and (folder / row["csv"]).exists():
                        row["counters"] = counters(folder / row["csv"])
                if part == "kernels" and (folder / "kernels.md").exists():
                    whole.append({"page": (folder / "kernels.md").read_text()})
                parts.setdefault(part, []).extend(whole)
    return machines, parts, broken


def table(head, rows):
    return ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)] + ["| " + " | ".join(str(x).replace("|", "\\|") for x in row) + " |" for row in rows] + [""]


def markdown(machines, parts, broken):
    m = machines[0] if machines else {}
    text = [f"# {m.get('gpu') or m.get('device', 'no machine.json')}, {m.get('date', '')[:10]}", ""]
    if not m:
        text += ["**No machine.json: the card is not known.**", ""]
    elif m["small"] or m["device"] != "cuda":
        text += ["**A rehearsal with tiny sizes: its figures mean nothing.**", ""]
    text += [f"Driver {m.get('driver')}, power limit {m.get('power_limit')}, clocks up to {m.get('clocks_sm')} (SM) and {m.get('clocks_memory')} (memory), "
             f"{m.get('cores')} processor cores, torch {m.get('torch') or 'absent'}, commit {m.get('commit')}. `scripts/gpu_bundle.sh`, then `run.sh` on the machine.", ""]
    if broken:
        text += [f"{broken} lines were cut off and are left out.", ""]
    text += ["## Parts", ""] + table(["part", "result", "seconds"], [
        (s["part"], s.get("skipped") or ("passed" if s["status"] == 0 else f"failed ({s['status']})"), s.get("seconds", "-")) for s in parts.get("summary", [])])
    for part in PARTS:
        rows = parts.get(part, [])
        skipped = [r["skipped"] for r in rows if "skipped" in r]
        rows = [r for r in rows if "skipped" not in r]
        if not rows and not skipped:
            continue
        text += [f"## {part.capitalize()}", ""] + [f"Left out: {s}." for s in skipped] + ([""] if skipped else [])
        if rows:
            text += SECTIONS[part](rows)
    return "\n".join(text).rstrip() + "\n"


def correctness(rows):
    by = {}
    for r in rows:
        by.setdefault(r.get("result", "error"), []).append(r)
    text = [", ".join(f"{len(v)} {k}" for k, v in sorted(by.items())) + ".", ""]
    bad = [r for k, v in by.items() if k != "ok" for r in v]
    return text + (table(["case", "result", "says"], [(r.get("case", "-"), r.get("result", "-"), r.get("says") or r.get("error", "")) for r in bad]) if bad else [])


def calibration(rows):
    # scripts/calibrate.sh writes a page of its own, whose headings go one level down.
    pages = [r["page"].splitlines() for r in rows if "page" in r]
    return [f"#{line}" if line.startswith("#") else line for page in pages for line in page[2:]] + [
        f"Failed: {r['says']}." for r in rows if r.get("status")] + [""]


def quickstart(rows):
    return table(["device", "status", "losses, first and last", "table", "says"], [
        (r["device"], r["status"], f"{r['losses'][0]} .. {r['losses'][-1]}" if r["losses"] else "-", r["table"], r["says"]) for r in rows])


def parity(rows):
    text = []
    for r in rows:
        result = r.get("result") or {}
        text += [f"{result.get('shape')}, {result.get('dtype')}, {result.get('steps')} steps: {'passed' if r['status'] == 0 else 'failed ' + r['says']}.", ""]
        text += table(["quantity", "distance from PyTorch in f32", "allowed"], [
            (k, f"{v['distance']:.2e}", f"{v['allowed']:.2e}") for k, v in result.items() if isinstance(v, dict) and "allowed" in v])
    return text


def ranks(rows):
    same = len({r["adapter"] for r in rows if "adapter" in r}) <= 1
    return [f"Two ranks have {'' if same else 'NOT '}the bytes of one.", ""] * (len(rows) > 1) + table(
        ["devices", "status", "seconds", "adapter", "says"], [(r["device"], r["status"], r["seconds"], r.get("adapter", "")[:8], r["says"]) for r in rows])


def kernels(rows):
    failed = [r for r in rows if "error" in r or "errors" in r]
    text = [f"{k}: {v}." for r in rows if not {"by", "page"} & r.keys() for k, v in r.items()] + [""]
    pages = [line for r in rows if "page" in r for line in r["page"].splitlines()]
    # Without PyTorch there is no table of both sides.
    ours = [(r["op"], r["shape"], r["dtype"], f"{r['seconds'] * 1e6:.1f}", r.get("percent")) for r in rows if r.get("by") == "sdrrl" and "seconds" in r]
    text += [*pages, ""] if pages else table(["op", "shape", "type", "us", "% of ceiling"], ours)
    return text + (table(["by", "op", "shape", "error"], [(r["by"], r.get("op"), r.get("shape"), r.get("error") or r["errors"]) for r in failed]) if failed else [])


def outputs(rows):
    return [line for r in rows for line in [f"{r['name']}{'' if r['status'] == 0 else ', failed'}:", "", "```", *r["output"], "```", ""]]


def sanitizers(rows):
    return table(["tool", "status", "cases", "summary"], [(r["tool"], "clean" if r["status"] == 0 else r["status"], r["cases"], r["summary"]) for r in rows])


def mutants(rows):
    shown = sum(r["chip"] != "not shown" for r in rows)
    return [f"The chip shows {shown} of {len(rows)} planted faults, the emulator reports each.", ""] + table(
        ["fault", "emulator", "chip", "the chip's words"], [(r["fault"], r["emulator"] or "reported", r["chip"], r["says"]) for r in rows])


def ncu(rows):
    text = []
    for r in rows:
        if "profile" in r:
            if isinstance(r["profile"], list):
                head = ["pattern", "wavefronts: emulator", "sectors: emulator", "wavefronts: chip", "sectors: chip"]
                text += ["The emulator's counts of one warp's accesses beside the chip's:", ""] + table(head, r["profile"])
            continue
        text += [f"{r['row']}{'' if r['status'] == 0 else ', failed'}:", ""]
        found = r.get("counters", {})
        text += table(["kernel", *METRICS], [(k, *(v.get(m, "-") for m in METRICS)) for k, v in found.items()]) if found else ["no counters", ""]
    return text


SECTIONS = {"correctness": correctness, "calibration": calibration, "quickstart": quickstart, "parity": parity, "ranks": ranks, "kernels": kernels, "steps": outputs,
            "generation": outputs, "sanitizers": sanitizers, "mutants": mutants, "ncu": ncu}


def main():
    folders = [pathlib.Path(a) for a in sys.argv[1:]]
    missing = [str(f) for f in folders if not f.is_dir()]
    if not folders or missing:
        sys.exit(f"gpu_report.py: no such folder: {', '.join(missing)}" if missing else __doc__)
    machines, parts, broken = read(folders)
    text = markdown(machines, parts, broken)
    (folders[0] / "report.json").write_text(json.dumps({"machines": machines, "broken lines": broken, **parts}, indent=1) + "\n")
    (folders[0] / "report.md").write_text(text)
    print(f"{folders[0]}/report.md")


main()
