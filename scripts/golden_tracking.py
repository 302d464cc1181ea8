#!/usr/bin/env python3
"""What MLflow and Weights & Biases write of a training that tests/tracking.rs makes, too: tests/golden/tracking.json.

pip install wandb==0.19.11 (the last whose reader and writer of offline runs are in Python) mlflow-skinny==3.17.2, in an environment of their own."""
import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
import wandb
from mlflow.entities import Param
from mlflow.store.tracking.file_store import FileStore
from mlflow.entities import Metric, RunTag
from wandb.proto import wandb_internal_pb2 as pb

wandb._assert_is_internal_process = True
from wandb.sdk.internal.datastore import DataStore

STARTED, STEPS = 1_700_000_000.5, 900
# Longer than two blocks of the log; what JSON escapes; what is nested.
CONFIG = {"lr": 0.0001, "text": "x" * 70_000, "quoted": "a \"b\"\n", "batch": {"tokens": 4096, "documents": None}, "targets": ["q", "k"]}
SUMMARY = {"summary/best/loss": 0.75, "summary/steps": 900.0}


def points():
    for step in range(STEPS + 1):
        values = {"eval/loss": 2.0 + step / 8} if step % 100 == 0 else {}
        if step:
            values |= {"train/loss": 3.0 / (step % 8 + 1), "perf/tokens_per_second": step * 10.5}
        yield step, STARTED + step * 0.25, dict(sorted(values.items()))


def item(key, value):
    return {"key": key, "value_json": json.dumps(value, separators=(",", ":"))}


def records():
    run = pb.RunRecord(run_id="67000000", project="proof", job_type="train", display_name="a name")
    run.start_time.FromNanoseconds(int(STARTED * 1e9))
    run.config.update.extend(pb.ConfigItem(**item(k, v)) for k, v in CONFIG.items())
    header = pb.HeaderRecord(version_info=pb.VersionInfo(producer="sdrrl"))
    yield pb.Record(header=header)
    yield pb.Record(run=run)
    last = {}
    for step, time, values in points():
        values = values | {"_step": step, "_runtime": time - STARTED, "_timestamp": time}
        last |= values
        items = [pb.HistoryItem(**item(k, v)) for k, v in values.items()]
        yield pb.Record(history=pb.HistoryRecord(item=items, step=pb.HistoryStep(num=step)))
    yield pb.Record(summary=pb.SummaryRecord(update=[pb.SummaryItem(**item(k, v)) for k, v in (last | SUMMARY).items()]))
    yield pb.Record(exit=pb.RunExitRecord(runtime=STEPS // 4))


def of_wandb(folder):
    path = folder / "run.wandb"
    store = DataStore()
    store.open_for_write(str(path))
    for number, record in enumerate(records(), 1):
        record.num = number
        store.write(record)
    store.close()
    data = path.read_bytes()
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "head": data[:64].hex()}


def of_mlflow(folder):
    store = FileStore(str(folder / "mlruns"))
    experiment = store.create_experiment("proof")
    run = store.create_run(experiment, "", int(STARTED * 1e3), [], "a name").info
    flat = {k: v for k, v in CONFIG.items() if k not in ("text", "batch")} | {f"batch.{k}": v for k, v in CONFIG["batch"].items()}
    for key, value in flat.items():
        store.log_param(run.run_id, Param(key, value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))))
    last = None
    for step, time, values in points():
        if step > 200:
            break
        for key, value in values.items():
            store.log_metric(run.run_id, Metric(key, value, round(time * 1e3), step))
    store.set_tag(run.run_id, RunTag("mlflow.source.type", "LOCAL"))
    root = folder / "mlruns" / experiment / run.run_id
    files = {kind: {str(p.relative_to(root / kind)): p.read_text() for p in sorted((root / kind).rglob("*")) if p.is_file()}
             for kind in ("params", "metrics", "tags")}
    keys = lambda path: [line.split(":")[0] for line in path.read_text().splitlines()]
    metrics = {k: {"lines": v.count("\n"), "sha256": hashlib.sha256(v.encode()).hexdigest()} for k, v in files["metrics"].items()}
    return {"params": files["params"], "metrics": metrics, "tags": files["tags"], "run": keys(root / "meta.yaml"),
            "experiment": keys(root.parent / "meta.yaml")}


def main():
    with tempfile.TemporaryDirectory() as name:
        found = {"wandb": of_wandb(Path(name)), "mlflow": of_mlflow(Path(name))}
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "tests/golden/tracking.json")
    out.write_text(json.dumps(found, indent=1) + "\n")


main()
