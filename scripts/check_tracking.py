#!/usr/bin/env python3
"""Checks that `sdrrl export` writes what MLflow and Weights & Biases read: each step, metric and setting of a training as their own tools see it, against its metrics.jsonl.

python scripts/check_tracking.py TRAINING [SDRRL]: TRAINING is the folder of a finished `sdrrl train`. pip install mlflow wandb. MLflow reads its folder and migrates it
to a database; `wandb sync` uploads its own to a server in this script, at a loopback address."""
import gzip
import http.server
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
import mlflow

PROJECT = "check"


class Server(http.server.BaseHTTPRequestHandler):
    """As much of W&B's server as `wandb sync` needs."""
    uploaded = {"config": {}, "name": None, "history": [], "summary": {}, "exitcode": None}

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        body = gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body
        answer = self.graphql(json.loads(body)) if self.path == "/graphql" else self.stream(body)
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT = do_POST

    def graphql(self, asked):
        variables = asked.get("variables") or {}
        if "UpsertBucket" in asked["query"]:
            self.uploaded["config"] |= json.loads(variables.get("config") or "{}")
            self.uploaded["name"] = self.uploaded["name"] or variables.get("displayName")
        project = {"id": "p", "name": variables.get("project"), "entity": {"id": "e", "name": "me"}}
        bucket = {"id": "b", "name": variables.get("name"), "displayName": "", "sweepName": None, "historyLineCount": 0, "config": "{}", "project": project}
        return {"data": {"viewer": {"id": "v", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}, "model": {"bucket": None},
                         "serverInfo": {"cliVersionInfo": {"max_cli_version": "9.9.9"}, "latestLocalVersionInfo": None},
                         "upsertBucket": {"bucket": bucket, "inserted": True}, "createRunFiles": {"runID": "r", "uploadHeaders": [], "files": []}}}

    def stream(self, body):
        sent = json.loads(body or b"{}")
        files = sent.get("files") or {}
        self.uploaded["history"] += [json.loads(line) for line in files.get("wandb-history.jsonl", {}).get("content", [])]
        for line in files.get("wandb-summary.json", {}).get("content", []):
            self.uploaded["summary"] = json.loads(line)
        if sent.get("complete"):
            self.uploaded["exitcode"] = sent.get("exitcode")
        return {}


def expected(training):
    """By tag: the values at each step."""
    found = {}
    for line in (training / "metrics.jsonl").open():
        values = json.loads(line)
        step = values.pop("step")
        for tag, x in values.items():
            if x is not None:
                found.setdefault(tag, {})[step] = x
    return found


def of_mlflow(folder):
    mlflow.set_tracking_uri(folder)
    [run] = mlflow.search_runs(search_all_experiments=True, output_format="list")
    client = mlflow.MlflowClient()
    history = {tag: {m.step: m.value for m in client.get_metric_history(run.info.run_id, tag)} for tag in run.data.metrics}
    return run, history, [a.path for a in client.list_artifacts(run.info.run_id)]


def upload(folder, home):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    env = os.environ | {"WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}", "WANDB_API_KEY": "0" * 40, "WANDB_ERROR_REPORTING": "false", "HOME": str(home)}
    wandb = Path(sys.executable).parent / "wandb"
    done = subprocess.run([wandb, "sync", *folder.glob("offline-run-*")], env=env, capture_output=True, text=True, timeout=120)
    server.shutdown()
    assert done.returncode == 0, done.stdout + done.stderr
    return Server.uploaded


def same(what, theirs, logged):
    """Every logged value is there, and what is beside them are speed, memory and numbers about the whole."""
    others = {tag for tag in theirs if tag not in logged}
    for tag, values in logged.items():
        assert theirs.get(tag) == values, f"{what}: {tag}: {theirs.get(tag)} instead of {values}"
    strange = {tag for tag in others if not tag.startswith(("perf/", "summary/", "_"))}
    assert not strange and "perf/tokens_per_second" in others, f"{what}: {others}"
    print(f"{what}: {sum(map(len, logged.values()))} values of {len(logged)} metrics are the same; beside them {', '.join(sorted(others))}")


def main():
    training = Path(sys.argv[1])
    sdrrl = sys.argv[2] if len(sys.argv) > 2 else "target/release/sdrrl"
    manifest, logged = json.loads((training / "manifest.json").read_text()), expected(training)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        subprocess.run([sdrrl, "export", training, "--mlflow", work / "mlruns", "--wandb", work / "wandb", "--project", PROJECT], check=True, stdout=subprocess.DEVNULL)
        run, history, artifacts = of_mlflow(f"file://{work}/mlruns")
        same(f"mlflow {mlflow.__version__}", history, logged)
        assert run.info.status == "FINISHED" and run.info.run_name == training.resolve().name, run.info
        assert artifacts == ["training.html"], artifacts
        assert float(run.data.params["lr"]) == manifest["settings"]["lr"] and run.data.metrics["summary/steps"] == manifest["summary"]["steps"], run.data
        migrated = f"sqlite:///{work}/mlflow.db"
        subprocess.run([Path(sys.executable).parent / "mlflow", "migrate-filestore", "--source", work / "mlruns", "--target", migrated], check=True, capture_output=True)
        same("mlflow migrate-filestore", of_mlflow(migrated)[1], logged)
        found = upload(work / "wandb", work)
        history = {}
        for row in found["history"]:
            for tag, x in row.items():
                history.setdefault(tag, {})[row["_step"]] = x
        same("wandb sync", history, logged)
        assert found["name"] == training.resolve().name and found["exitcode"] == 0, found
        assert found["config"]["lr"]["value"] == manifest["settings"]["lr"], found["config"]
        assert found["summary"]["summary/steps"] == manifest["summary"]["steps"], found["summary"]


main()
