"""A replacement of W&B's server: it creates sweeps, gives their points to agents and stores what runs log."""

import contextlib
import dataclasses
import http.server
import itertools
import json
import re
import threading
from collections.abc import Iterator
from typing import Any

import yaml

ENTITY = "someone"


@dataclasses.dataclass
class Run:
    """A run as its process sent it."""

    project: str
    sweep: str | None
    name: str
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    summary: dict[str, Any] = dataclasses.field(default_factory=dict)
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    exit_code: int | None = None
    group: str | None = None
    tags: list[str] | None = None
    notes: str | None = None


@dataclasses.dataclass
class Sweep:
    """A sweep with its points by run id, and the run ids that no agent has yet."""

    name: str
    project: str
    config: str
    points: dict[str, dict[str, Any]]
    waiting: list[str]


class Server(http.server.ThreadingHTTPServer):
    """Answers the requests that `wandb sweep`, `wandb agent` and an online run need."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.sweeps: dict[str, Sweep] = {}
        self.runs: dict[str, Run] = {}
        self.requests: list[str] = []  # GraphQL operations, and the paths of other requests
        self.lock = threading.Lock()  # as each request has its own thread

    def answer(self, operation: str, v: dict[str, Any]) -> dict[str, Any]:
        """Return the data of a GraphQL operation with the variables `v`; {} for an operation that needs no answer."""
        match operation:
            case "Viewer":
                return {"viewer": {"id": ENTITY, "entity": ENTITY, "username": ENTITY, "teams": {"edges": []}}}
            case "UpsertSweep":
                name = f"sweep{len(self.sweeps)}"
                points = {f"{name}point{i}": point for i, point in enumerate(_grid(yaml.safe_load(v["config"])))}
                self.sweeps[name] = Sweep(name, v["projectName"], v["config"], points, list(points))
                return {"upsertSweep": {"sweep": {"name": name, "project": _project(v["projectName"])}}}
            case "SweepWithRuns":
                sweep = {"name": v["sweep"], "config": self.sweeps[v["sweep"]].config, "runs": {"edges": []}}
                return {"project": {"sweep": sweep}}
            case "CreateAgent":
                return {"createAgent": {"agent": {"id": v["sweep"]}}}  # the heartbeat sends this id back
            case "Heartbeat":
                commands = self._commands(self.sweeps[v["id"]], json.loads(v["runState"]))
                return {"agentHeartbeat": {"commands": json.dumps(commands)}}
            case "UpsertBucket":
                new = Run(
                    v["project"], v["sweep"], v["displayName"], group=v["groupName"], tags=v["tags"], notes=v["notes"]
                )
                run = self.runs.setdefault(v["name"], new)
                run.config |= {key: entry["value"] for key, entry in json.loads(v["config"] or "{}").items()}
                bucket = {"id": v["name"], "name": v["name"], "project": _project(v["project"])}
                return {"upsertBucket": {"bucket": bucket, "inserted": True}}
            case "RunResumeStatus" if run := self.runs.get(v["name"]):
                tail = json.dumps([json.dumps(row) for row in run.history[-1:]])
                bucket = {"id": v["name"], "name": v["name"], "historyTail": tail, "eventsTail": "[]"}
                bucket |= {"logLineCount": 0, "eventsLineCount": 0, "historyLineCount": len(run.history)}
                bucket |= {"config": "{}", "wandbConfig": '{"t": 1}', "summaryMetrics": json.dumps(run.summary)}
                return {"model": _project(v["project"]) | {"bucket": bucket}}
            case "CreateRunFiles":  # without an answer, W&B's process ends at once
                return {"createRunFiles": {"runID": v["run"], "uploadHeaders": [], "files": []}}
        return {}

    def stream(self, run: Run, sent: dict[str, Any]) -> None:
        """Store the rows, the summary and the exit code that a run sends. New rows replace those from their offset."""
        lines = {name: [json.loads(line) for line in file["content"]] for name, file in sent.get("files", {}).items()}
        if rows := lines.get("wandb-history.jsonl"):
            run.history[sent["files"]["wandb-history.jsonl"]["offset"] :] = rows
        run.summary = [run.summary, *lines.get("wandb-summary.json", [])][-1]
        run.exit_code = sent.get("exitcode", run.exit_code)

    def _commands(self, sweep: Sweep, running: dict[str, bool]) -> list[dict[str, Any]]:
        """Return the next run once none is running, and the end after the last one."""
        if running:
            return []
        if not sweep.waiting:
            return [{"type": "exit"}]
        run_id = sweep.waiting.pop(0)
        args = {key: {"value": value} for key, value in sweep.points[run_id].items()}
        return [{"type": "run", "run_id": run_id, "program": yaml.safe_load(sweep.config)["program"], "args": args}]


def _project(name: str) -> dict[str, Any]:
    return {"id": name, "name": name, "entity": {"id": ENTITY, "name": ENTITY}}


def _grid(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Return all combinations of the sweep's values; the last parameter changes fastest."""
    choices = {key: entry.get("values", [entry.get("value")]) for key, entry in config["parameters"].items()}
    return [dict(zip(choices, point, strict=True)) for point in itertools.product(*choices.values())]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_POST(self) -> None:
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = {}
        with self.server.lock:
            if self.path == "/graphql":
                (operation,) = re.findall(r"^\s*(?:query|mutation)\s+(\w+)", sent["query"])
                self.server.requests.append(operation)
                answer = {"data": self.server.answer(operation, sent.get("variables") or {})}
            else:
                self.server.requests.append(self.path)
                self.server.stream(self.server.runs[self.path.split("/")[-2]], sent)  # /files/ENTITY/PROJECT/RUN/...
        text = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """Run a server on a free local port."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
