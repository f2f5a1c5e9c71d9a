"""The training process of a sweep: groups of points arrive on stdin, events leave on a pipe, both as JSON lines.

`processes.Worker` starts `python -m mobilenet_jax.sweeps.worker PIPE CORES`. At the end of stdin, also after the sweep
was killed, the process saves and ends.

A group is `{"points": [{"name", "config", "directory"}, ...], "compile_seconds", "wall_seconds"}`, where the seconds
were spent by an earlier process. An event names a point by its index in the group:

    {"event": "row", "point": 0, "row": {...}}               a row of metrics, or the progress of the run
    {"event": "done", "point": 0, "summary": {...}}          finished or diverged
    {"event": "busy", "point": 0}                            another process trains the point
    {"event": "failed", "point": 0, "error": "..."}
    {"event": "unwritable", "point": 0, "error": "..."}      the disk is full, so other points would fail, too
    {"event": "restart", "compile_seconds": 8.1}             compiled; a fresh process should train the group
    {"event": "idle"}                                        the group is over
    {"event": "alive"}                                       every few seconds
"""

import contextlib
import functools
import json
import os
import pathlib
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from mobilenet_jax import config, console
from mobilenet_jax.errors import Busy, InputError, is_unwritable
from mobilenet_jax.records.directory import RunDirectory, read_summary
from mobilenet_jax.training import host

_ALIVE = 5.0  # seconds between two "alive" events
Say = Callable[..., None]


def main() -> int:
    """Train groups until stdin ends; return the exit code."""
    pipe, cores = int(sys.argv[1]), [int(core) for core in sys.argv[2].split(",")]
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)  # XLA starts one thread per core
    host.keep_memory()
    events, lock = os.fdopen(pipe, "w", buffering=1), threading.Lock()

    def say(event: str, **details: Any) -> None:
        with lock, contextlib.suppress(BrokenPipeError):  # the sweep has ended, and stdin ends as well
            events.write(json.dumps({"event": event, **details}) + "\n")

    threading.Thread(target=_stay_alive, args=(say,), daemon=True).start()
    groups: queue.Queue[str | None] = queue.Queue()
    training: list[list[int]] = []  # while a group trains, its list of signals
    threading.Thread(target=_read, args=(groups, training), daemon=True).start()
    from mobilenet_jax.training import loop  # noqa: F401  (imports JAX while nothing else waits)

    while (line := groups.get()) is not None:
        if _work(json.loads(line), say, training):
            return 0
        say("idle")
    return 0


def _stay_alive(say: Say) -> None:
    while True:
        time.sleep(_ALIVE)
        say("alive")


def _read(groups: queue.Queue[str | None], training: list[list[int]]) -> None:
    """Queue the lines of stdin; at its end, stop the training group as SIGTERM would."""
    for line in sys.stdin:
        groups.put(line)
    groups.put(None)
    try:
        training[0].append(signal.SIGTERM)
    except IndexError:
        os._exit(0)  # the process compiles or prepares data, and has nothing to save


def _work(group: dict[str, Any], say: Say, training: list[list[int]]) -> bool:
    """Train a group of points; return whether this process should end."""
    from mobilenet_jax.training import loop  # imports JAX
    from mobilenet_jax.training.compile import compile_runs
    from mobilenet_jax.training.progress import Display
    from mobilenet_jax.training.run import TrainingRun

    started = time.perf_counter()
    specs = [config.resolve(ConfigDict(point["config"]), point["name"]) for point in group["points"]]
    left: dict[int, RunDirectory] = {}  # the points to train here

    def elapsed() -> float:
        return group["wall_seconds"] + time.perf_counter() - started

    try:
        with contextlib.ExitStack() as held, console.signals() as asked:
            for i, (spec, point) in enumerate(zip(specs, group["points"], strict=True)):
                record = RunDirectory(pathlib.Path(point["directory"]))
                try:
                    loop.finished(spec, record.path)  # raises if the directory holds another run
                    held.enter_context(record.locked())
                    if summary := loop.finished(spec, record.path):
                        say("done", point=i, summary=summary.model_dump())
                    else:
                        left[i] = record
                except Busy:
                    say("busy", point=i)
                except InputError as e:
                    say(_failure(e), point=i, error=str(e))
            if left:
                inputs = loop.prepare(specs[0])
                program = compile_runs([specs[i] for i in left], inputs)
                if host.should_restart(program.compile_seconds) and not group["compile_seconds"] and not asked:
                    say("restart", compile_seconds=program.compile_seconds)
                    return True
                share = (group["compile_seconds"] + program.compile_seconds) / len(left)
                device = loop.device_name(inputs.devices)
                displays = {i: Display(functools.partial(_row, say, i)) for i in left}
                runs = [
                    TrainingRun(specs[i], record, displays[i], device, elapsed, share, len(left))
                    for i, record in left.items()
                ]
                training.append(asked)
                loop.train(program, runs, asked)
            for i, record in left.items():
                if summary := read_summary(record.path):
                    say("done", point=i, summary=summary.model_dump())
                else:
                    raise InputError(f"{record.path}: the run has finished, but its summary is gone")
    except loop.Interrupted:
        return True
    except Exception as e:
        if not isinstance(e, InputError):
            with contextlib.suppress(OSError):  # the log's disk may be full
                traceback.print_exc()
        reason = str(e) if isinstance(e, InputError) else f"{type(e).__name__}: {e}".splitlines()[0]
        for i in left or range(len(specs)):
            summary = None
            with contextlib.suppress(InputError):
                summary = read_summary(left[i].path) if left else None
            if summary:
                say("done", point=i, summary=summary.model_dump())
            else:
                say(_failure(e), point=i, error=reason)
        return not isinstance(e, InputError)  # a bug may have left this process in any state
    finally:
        training.clear()
    return False


def _failure(error: Exception) -> str:
    return "unwritable" if is_unwritable(error) else "failed"


def _row(say: Say, point: int, row: Mapping[str, Any]) -> None:
    say("row", point=point, row=dict(row))


if __name__ == "__main__":
    code = main()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(code)  # the exit handlers of other libraries are not needed, and may hang
