#!/usr/bin/env python3
"""The PyTorch side of benches/kernels.rs on a GPU, and the table of both.

python scripts/peer_kernels.py run --rows OURS.jsonl --json THEIRS.jsonl [--device cuda] [--compile] [--compile-seconds 60]
    times PyTorch's equivalent of every row in OURS.jsonl that has one: cuBLASLt for products, the fastest of cuDNN's, flash's and the memory-efficient
    SDPA for attention, fused AdamW, and with --compile also torch.compile for what PyTorch has no single kernel for; the fastest counts and is named. A
    compilation that fails or takes longer leaves the row to the others. Random normal inputs, medians of 31 by CUDA events, the L2 cache flushed before
    rows in bytes, as the other side does. The GPU sleeps while Python launches, so that PyTorch is not charged for the host's time (what a call waits
    for, such as tolist(), counts); the other side's figures include its own launches. The first line has PyTorch's own ceilings: a copy of 256 MiB and
    the bf16 product 8192^3. Compiled code is kept in TORCHINDUCTOR_CACHE_DIR, by default `inductor` beside THEIRS.jsonl, for later rounds.
python scripts/peer_kernels.py check --table TABLE.jsonl [--device cpu] [--compile] [OP ..]
    holds every call to the op's formula in f64, at the table's first checked shape, and tries `table` and `worst` on rows made up; every op in
    TABLE.jsonl (`cargo bench --bench kernels -- --list > TABLE.jsonl`) must have a peer or be known to have none.
python scripts/peer_kernels.py table --ours A.jsonl [A2.jsonl ..] --theirs B.jsonl [B2.jsonl ..]
    medians over rounds of both sides, a row each, slowest against its peer first. To interleave, alternate the two programs and give all files.
python scripts/peer_kernels.py worst --ours A.jsonl [..] [--theirs B.jsonl [..]] [--count 5]
    names of the rows that are slowest against PyTorch, then of those furthest below their ceiling, as benches/kernels.rs takes them: for a profiler.
pip install torch."""
import argparse
import contextlib
import gc
import io
import json
import math
import os
import pathlib
import signal
import statistics
import sys
import tempfile
import time

from peer_card import card, torch_device

FLUSH = 256 << 20
REPEATS = 31
# Long enough for Python to launch whatever a call launches, in the GPU's cycles: about half a millisecond.
SLEEP = 1_000_000

@contextlib.contextmanager
def at_most(seconds):
    def late(*_):
        raise TimeoutError(f"took longer than {seconds} s")
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def clock(call, cold, flush):
    """The median time of a call, s."""
    import torch

    def once():
        if flush is None:
            start = time.perf_counter()
            call()
            return time.perf_counter() - start
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        if cold:
            flush[0].copy_(flush[1])
        torch.cuda._sleep(SLEEP)
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3
    for _ in range(3):
        call()
    return statistics.median(once() for _ in range(REPEATS if flush else 3))


def ceilings(device, flush):
    import torch
    if flush is None:
        return None, None
    copied = clock(lambda: flush[0].copy_(flush[1]), False, flush)
    a, b = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = clock(lambda: a @ b.t(), False, flush)
    return 2 * FLUSH / copied, 2 * 8192**3 / product


def said(e):
    return " ".join(f"{type(e).__name__}: {e}".split())[:200]


def time_row(peer, args, cold, flush):
    """What is written of a row: the fastest call, all of them, and what failed."""
    import torch
    times, errors = {}, {}
    if args.compile:
        torch._dynamo.reset()
        peer.compile()
    for name, call in peer.calls.items():
        try:
            with at_most(args.compile_seconds):
                call()
            times[name] = clock(call, cold, flush)
        except Exception as e:  # noqa: BLE001: whatever a backend or a compiler raises, the row's other calls go on
            errors[name] = said(e)
    found = {"errors": errors} if errors else {}
    if times:
        name = min(times, key=times.get)
        found |= {"seconds": times[name], "peer": name, "all": times}
    return found


def run(args):
    # Before torch is loaded, which reads them.
    cache = pathlib.Path(args.json).resolve().parent / "inductor"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))
    os.environ.setdefault("TORCHINDUCTOR_FX_GRAPH_CACHE", "1")
    os.environ.setdefault("TORCHINDUCTOR_AUTOGRAD_CACHE", "1")
    import torch
    from peer_kernel_ops import Peers
    dtypes = {"bf16": torch.bfloat16, "f32": torch.float32}
    args.device = torch_device(args.device)
    torch.manual_seed(1)
    flush = [torch.empty(FLUSH // 4, device=args.device) for _ in range(2)] if args.device.startswith("cuda") else None
    about = {**card(args.device), "torch": torch.__version__}
    with open(args.rows) as rows, open(args.json, "w") as out:
        def write(line):
            out.write(json.dumps(line) + "\n")
            out.flush()
        copy, product = ceilings(args.device, flush)
        write({"ceilings": {"copy": copy, "product": product}, **about})
        for row in map(json.loads, rows):
            line = {"op": row["op"], "shape": row["shape"], "dtype": row["dtype"], **about}
            try:
                peer = Peers(args.device).of(row["op"], row["shape"], dtypes[row["dtype"]])
                if peer is None:
                    continue
                line |= time_row(peer, args, "bytes" in row, flush)
            except Exception as e:  # noqa: BLE001: a row that PyTorch cannot do costs no other
                line["error"] = said(e)
            write(line)
            peer = None
            gc.collect()
            if flush:
                torch.cuda.empty_cache()


def distance(got, want):
    """The relative error of one result, or the share of different integers."""
    import torch
    got = torch.as_tensor(got, device=want.device)
    assert got.shape == want.shape, f"shape {tuple(got.shape)}, not {tuple(want.shape)}"
    if not want.is_floating_point():
        return (got != want).double().mean().item()
    got = got.double()
    assert got.isfinite().all(), "a number that is not finite"
    return ((got - want).norm() / want.norm()).item()


def check_op(op, shape, dtype, args):
    """Prints a line a call; the number of those that are wrong, or 1 if none could run."""
    import torch
    from peer_kernel_ops import Peers

    def fresh():
        torch.manual_seed(1)
        peer = Peers(args.device).of(op, shape, dtype)
        if args.compile:
            torch._dynamo.reset()
            peer.compile()
        return peer
    wrong = ran = 0
    for name in fresh().calls:
        # Some change their inputs.
        peer = fresh()
        want, label = peer.plain(), f"{op} {str(dtype).removeprefix('torch.')} by {name}"
        try:
            got = peer.compared(peer.calls[name]())
        except Exception as e:  # noqa: BLE001: a backend may lack an op; another must have it
            print(f"{label:<90} cannot: {said(e)}")
            continue
        ran += 1
        pairs = list(zip(got, want)) if isinstance(want, tuple) else [(got, want)]
        try:
            assert not isinstance(want, tuple) or len(got) == len(want), f"{len(got)} results, not {len(want)}"
            error = max(distance(*pair) for pair in pairs)
            assert error <= (2e-2 if dtype == torch.bfloat16 else 1e-5), f"error {error:.1e}"
            print(f"{label:<90} error {error:.1e}")
        except AssertionError as e:
            wrong += 1
            print(f"{label:<90} WRONG: {e}")
    return wrong + (ran == 0)


def read_table(path):
    """Op to its line of the kernels' table; ops without a peer, known or not, are not in it but in the number of unknown ones."""
    from peer_kernel_ops import WITHOUT_PEER, Peers
    with open(path) as lines:
        table = {row["op"]: row for row in map(json.loads, lines)}
    if not table:
        sys.exit(f"{path} holds no row")
    lacking = {op for op in table if not hasattr(Peers, op)}
    for op in sorted(lacking - WITHOUT_PEER):
        print(f"{op}: no peer, and not known to have none")
    return {op: row for op, row in table.items() if op not in lacking}, len(lacking - WITHOUT_PEER)


def check_tables():
    """`table` and `worst` on two rounds of three rows made up, one without a peer."""
    def row(op, seconds, **more):
        return {"op": op, "shape": [8, 4], "dtype": "bf16", "seconds": seconds, **more}
    ours = [[row("fast", 1e-6 * r, percent=90.0, ceiling=3e12, bytes=1.0), row("slow", 4e-6, percent=80.0, ceiling=7e14, flop=1.0),
             row("alone", 1e-6, percent=10.0, ceiling=3e12, bytes=1.0), {"op": "broken", "shape": [1], "dtype": "bf16", "error": "x"}] for r in (1, 2, 3)]
    theirs = [[{"ceilings": {"copy": 3.1e12, "product": 7.5e14}, "device": "a card", "torch": "2"}, row("fast", 3e-6, peer="p"), row("slow", 2e-6, peer="q")]] * 3
    with tempfile.TemporaryDirectory() as folder:
        def files(side, rounds):
            paths = [pathlib.Path(folder) / f"{side}.{i}" for i in range(len(rounds))]
            for path, rows in zip(paths, rounds):
                path.write_text("".join(json.dumps(r) + "\n" for r in rows))
            return [str(p) for p in paths]
        given = argparse.Namespace(ours=files("ours", ours), theirs=files("theirs", theirs), count=2)
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            table(given)
        assert "copy 3000 GB/s, product 700 TFLOP/s" in said.getvalue() and "copy 3100 GB/s, product 750 TFLOP/s" in said.getvalue(), said.getvalue()
        assert "| slow | 8 x 4 | bf16 | 4.0 | 80 % | 2.0 | q | 0.50 |\n| fast | 8 x 4 | bf16 | 2.0 | 90 % | 3.0 | p | 1.50 |" in said.getvalue(), said.getvalue()
        names = ["slow 8x4 bf16", "fast 8x4 bf16", "alone 8x4 bf16"]
        for count in range(4):
            assert worst_names(given.ours, given.theirs, count) == names[:count]
        assert worst_names(given.ours, [], 2) == ["alone 8x4 bf16", "slow 8x4 bf16"]
    print("table and worst: as they should be")


def check(args):
    import torch
    table, wrong = read_table(args.table)
    for op in args.ops:
        if op not in table:
            sys.exit(f"there is no op {op} with a peer; there are {', '.join(table)}")
    check_tables()
    for op in args.ops or table:
        row = table[op]
        for dtype in [torch.bfloat16, torch.float32] if "bf16" in row["dtypes"] else [torch.float32]:
            wrong += check_op(op, row["checked"][0], dtype, args)
    print(f"{wrong} wrong" if wrong else "every peer computes its op")
    sys.exit(wrong > 0)


def lines(files):
    for name in files:
        with open(name) as rows:
            for text in rows:
                # A run cut off may leave half a line.
                with contextlib.suppress(json.JSONDecodeError):
                    yield json.loads(text)


def gather(files):
    """(op, shape, dtype) to (median seconds, the first round's row)."""
    found = {}
    for row in lines(files):
        if "seconds" in row:
            found.setdefault((row["op"], tuple(row["shape"]), row["dtype"]), []).append(row)
    return {k: (statistics.median(r["seconds"] for r in v), v[0]) for k, v in found.items()}


def ratios(ours, theirs):
    """(PyTorch's time / ours, key), slowest first; infinite without a peer."""
    return sorted((theirs[key][0] / seconds if key in theirs else math.inf, key) for key, (seconds, _) in ours.items())


def both_ceilings(ours, theirs):
    """A line a side: medians over the rounds."""
    own = {"bytes": [], "flop": []}
    for row in lines(ours):
        for key, values in own.items():
            values.extend([row["ceiling"]] if key in row and row.get("ceiling") else [])
    peer = [row["ceilings"] for row in lines(theirs) if row.get("ceilings")]
    found = {"ours": (own["bytes"], own["flop"]), "PyTorch's": tuple([c[k] for c in peer if c[k]] for k in ("copy", "product"))}
    for side, (copies, products) in found.items():
        if copies and products:
            print(f"Ceilings, {side}: copy {statistics.median(copies) / 1e9:.0f} GB/s, product {statistics.median(products) / 1e12:.0f} TFLOP/s (bf16, 8192^3)")


def table(args):
    ours, theirs = gather(args.ours), gather(args.theirs)
    about = next((r for r in lines(args.theirs) if "torch" in r), {})
    print(f"{about.get('device')}, driver {about.get('driver')}, power limit {about.get('power_limit')}, PyTorch {about.get('torch')}; random normal inputs; "
          f"{len(args.ours)} interleaved rounds, medians; L2 flushed for rows in bytes; PyTorch's launches hidden, ours not.\n")
    both_ceilings(args.ours, args.theirs)
    print("\n| op | shape | type | us | of ceiling | PyTorch us | by | PyTorch / ours |\n| --- | --- | --- | ---: | ---: | ---: | --- | ---: |")
    for ratio, key in ratios(ours, theirs):
        (seconds, row), peer, (op, shape, dtype) = ours[key], theirs.get(key), key
        percent = f"{row['percent']:.0f} %" if row.get("percent") else "-"
        other = f"{peer[0] * 1e6:.1f} | {peer[1]['peer']} | {ratio:.2f}" if peer else "- | - | -"
        print(f"| {op} | {' x '.join(map(str, shape))} | {dtype} | {seconds * 1e6:.1f} | {percent} | {other} |")


def worst_names(ours, theirs, count):
    ours, theirs = gather(ours), gather(theirs)
    keys = [key for ratio, key in ratios(ours, theirs) if ratio < math.inf]
    alone = [(row["percent"], key) for key, (_, row) in ours.items() if row.get("percent") and key not in theirs]
    keys += [key for _, key in sorted(alone)]
    return [f"{op} {'x'.join(map(str, shape))} {dtype}" for op, shape, dtype in keys[:count]]


def worst(args):
    for name in worst_names(args.ours, args.theirs, args.count):
        print(name)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("run")
    one.add_argument("--rows", required=True)
    one.add_argument("--json", required=True)
    one.set_defaults(do=run)
    two = commands.add_parser("check")
    two.add_argument("--table", required=True)
    two.add_argument("ops", nargs="*")
    two.set_defaults(do=check)
    for command, device in [(one, "cuda"), (two, "cpu")]:
        command.add_argument("--device", default=device)
        command.add_argument("--compile", action="store_true")
        command.add_argument("--compile-seconds", type=int, default=60)
    for name, do in [("table", table), ("worst", worst)]:
        three = commands.add_parser(name)
        three.add_argument("--ours", nargs="+", required=True)
        three.add_argument("--theirs", nargs="*", default=[])
        three.set_defaults(do=do)
    three.add_argument("--count", type=int, default=5)
    args = parser.parse_args()
    args.do(args)


if __name__ == "__main__":
    main()
