"""Run a command once per line of arguments, each time in a fork of a process that has imported it.

    python tests/fork_server.py launch      # or: report, weights, archive

Starting Python with the imports takes half a second, forking a hundredth. A line is a JSON list of arguments. The
answer is a JSON list: the exit code (negative if a signal ended it, as after LIMIT seconds), stdout and stderr.
"""

import importlib
import json
import os
import pathlib
import signal
import sys
import tempfile
import traceback

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

LIMIT = 60  # seconds


def launch() -> int:
    import launch

    return launch.run()


def report() -> int:
    from mobilenet_jax import report

    return report.main()


def weights() -> int:
    from mobilenet_jax import weights

    return weights.main()


def archive() -> int:
    """Prepare CIFAR-10 from an archive; arguments: its path and the target directory."""
    from mobilenet_jax.data import arrays, datasets
    from mobilenet_jax.errors import InputError

    try:
        arrays.load(datasets.describe("cifar10", sys.argv[2]), sys.argv[2], sys.argv[1])
    except InputError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    return 0


def run_in_child(command, arguments: list[str]) -> None:
    signal.alarm(LIMIT)
    sys.argv = [command.__name__, *arguments]
    try:
        code = command()
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 70
    try:
        sys.stdout.flush()
    finally:
        os._exit(code)


def main() -> None:
    command = {"launch": launch, "report": report, "archive": archive, "weights": weights}[sys.argv[1]]
    for module in (
        "launch",
        "mobilenet_jax.report",
        "mobilenet_jax.render.page",
        "mobilenet_jax.data.arrays",
        "mobilenet_jax.weights",
    ):
        importlib.import_module(module)

    for line in sys.stdin:
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            pid = os.fork()
            if not pid:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                run_in_child(command, json.loads(line))
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            output = []
            for file in (out, err):
                file.seek(0)
                output.append(file.read().decode(errors="replace"))
        print(json.dumps([code, *output]), flush=True)


if __name__ == "__main__":
    main()
