"""Tables and figures: of run directories, of every published cost, of measured inference times.

python -m mobilenet_jax.report RUNS_DIR...
python -m mobilenet_jax.report --published [--out DIR]
python -m mobilenet_jax.report --latency results/bench/cpu_latency.json [--out DIR]
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from mobilenet_jax import arch, claims, conventions, documents, latency, papers, published
from mobilenet_jax.cost import LayerCost, held_activations, layer_costs, totals
from mobilenet_jax.errors import InputError
from mobilenet_jax.tables import Table

_HEADER = ("network", "data", "test top-1", "mult-adds", "params", "epochs", "seed", "images/s", "minutes", "device")


def summaries(directories: Iterable[pathlib.Path]) -> list[dict[str, Any]]:
    """The `summary.json` of every finished run below `directories`, by mult-adds, then by seed."""
    paths = sorted({path for directory in directories for path in directory.rglob("summary.json")})
    found = [json.loads(path.read_text()) for path in paths]
    return sorted(
        (s for s in found if s["status"] == "finished"), key=lambda s: (s["dataset"], s["mult_adds"], s["seed"])
    )


def runs_table(runs: Iterable[dict[str, Any]]) -> Table:
    """One row a run: accuracies of the last epoch, in percent; costs in millions."""
    rows = [
        (
            run["title"].partition(f", {run['resolution']}x")[0],
            f"{run['dataset']} {run['resolution']}x{run['resolution']}",
            f"{run['test_accuracy']:.2%}",
            f"{run['mult_adds'] / 1e6:.2f} M",
            f"{run['params'] / 1e6:.2f} M",
            str(run["epochs"]),
            str(run["seed"]),
            f"{run['train_images_per_second']:,.0f}",
            f"{run['wall_seconds'] / 60:.1f}",
            run["device"],
        )
        for run in runs
    ]
    return Table("runs", "Finished runs", _HEADER, tuple(rows))


def published_tables() -> list[Table]:
    """Every printed cost beside ours; a Pixel 1's printed times beside its roofline.

    Raises:
      RuntimeError: a cell differs from what is printed, and nothing explains it: a layer list is wrong.
    """
    printed = [*papers.tables(), *documents.tables()]
    if wrong := claims.unexplained(printed):
        raise RuntimeError(f"printed figures and misprints.csv do not fit the count: {'; '.join(wrong)}")
    return [*map(claims.as_table, printed), latency.pixel_1()]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m mobilenet_jax.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", type=pathlib.Path, help="directories that hold runs, at any depth")
    parser.add_argument("--published", action="store_true", help="the papers' tables of costs, every cell beside ours")
    parser.add_argument("--latency", type=pathlib.Path, metavar="RECORD", help="of benchmarks/layer_latency.py")
    parser.add_argument("--out", type=pathlib.Path, metavar="DIR", help="the same as Markdown and CSV, and figures")
    args = parser.parse_args()
    try:
        if not (args.runs or args.published or args.latency):
            raise InputError("name directories that hold runs, or give --published or --latency")
        _report(args)
    except InputError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    return 0


def _report(args: argparse.Namespace) -> None:
    for directory in args.runs:
        if not directory.is_dir():
            raise InputError(f"{directory} is not a directory")
    record = _read_record(args.latency) if args.latency else None
    if args.out and args.out.exists() and not args.out.is_dir():
        raise InputError(f"--out={args.out}: is not a directory")
    parts: dict[str, list[Table]] = {}
    if args.runs:
        parts["runs"] = [runs_table(summaries(args.runs))]
    if args.published:
        parts["published"] = published_tables()
        parts["conventions"] = list(conventions.tables())
    if record:
        parts["latency"] = list(latency.tables(record))
    for tables in parts.values():
        for table in tables:
            print(table.section() if len(tables) > 1 else table.markdown(), end="\n\n" if len(tables) > 1 else "\n")
    if args.out:
        _write(args.out, parts, record)


def _read_record(path: pathlib.Path) -> dict[str, Any]:
    """A record of inference times.

    Raises:
      InputError: it cannot be read, or is something else.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        latency.networks(record)
    except OSError as e:
        raise InputError(f"--latency={path}: {e.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"--latency={path}: not a record of benchmarks/layer_latency.py") from None
    return record


def _write(out: pathlib.Path, parts: dict[str, list[Table]], record: dict[str, Any] | None) -> None:
    from mobilenet_jax import figures  # and matplotlib with it

    drawn = {}
    if "published" in parts:
        drawn["published"] = _published_figures()
    if record:
        drawn["latency"] = _latency_figures(record)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for part, tables in parts.items():
            pictures = drawn.get(part, {})
            for name, (_, figure) in pictures.items():
                figures.save(figure, out / name)
            for table in tables:
                (out / f"{table.name}.csv").write_text(table.csv(), encoding="utf-8")
            shown = [f"![{title}]({name}.png)" for name, (title, _) in pictures.items()]
            page = "\n\n".join([f"# {_PAGES[part]}", *shown, *(table.section() for table in tables)])
            (out / f"{part}.md").write_text(page + "\n", encoding="utf-8")
    except OSError as e:
        raise InputError(f"--out={out}: {e.strerror}") from None


_PAGES = {
    "runs": "Runs",
    "published": "Published costs, printed and ours",
    "conventions": "Counting conventions: where a foreign figure comes from",
    "latency": "Inference time, measured and predicted",
}


def _checkpoints() -> list[tuple[str, dict[str, str], arch.Architecture]]:
    """TF-slim's 38 networks: version, printed row, layers."""
    builds = {"v1": arch.mobilenet_v1, "v2": arch.mobilenet_v2}
    return [(v, row, build(float(row["alpha"]))) for v, build in builds.items() for row in published.rows(f"slim_{v}")]


def _published_figures() -> dict[str, tuple[str, Any]]:
    """File name -> what it shows, figure."""
    from mobilenet_jax import figures

    def points(count: str) -> list[figures.Point]:
        return [
            figures.Point(
                version,
                float(row["alpha"]),
                int(row["resolution"]),
                getattr(totals(network, int(row["resolution"])), count) / 1e6,
                float(row["top1"]),
            )
            for version, row, network in _checkpoints()
        ]

    full = [(v, row, network) for v, row, network in _checkpoints() if row["resolution"] == "224"]
    shares = {
        f"{v}, alpha {float(row['alpha']):g}": _by_kind(layer_costs(network, 224))
        for v, row, network in sorted(full, key=lambda item: (item[0], float(item[1]["alpha"])))
    }
    memory = [_memory("v1, alpha 1", arch.mobilenet_v1()), _memory("v2, alpha 1", arch.mobilenet_v2())]
    return {
        "accuracy_mult_adds": (
            "ImageNet top-1 of the 38 released checkpoints against mult-adds",
            figures.accuracy(points("mult_adds")),
        ),
        "accuracy_params": (
            "The same against trainable params",
            figures.accuracy(points("params"), "trainable params (millions)"),
        ),
        "mult_adds_by_kind": ("Where the mult-adds are, at 224 pixels", figures.mult_adds_by_kind(shares)),
        "activation_memory": (
            "Activations in memory along the layers, 224 pixels, 16 bits a value",
            figures.activation_memory(memory),
        ),
    }


def _by_kind(rows: Sequence[LayerCost]) -> dict[str, int]:
    """Mult-adds by kind of layer, the pointwise ones of inverted residuals told apart."""
    found: dict[str, int] = {}
    for row in rows:
        role = row.layer.name.rpartition("_")[2]
        kind = role if role in ("expand", "project") else row.layer.kind
        found[kind] = found.get(kind, 0) + row.mult_adds
    return found


def _memory(name: str, network: arch.Architecture) -> Any:
    """In kB at 16 bits a value, as in the v2 paper's Table 3."""
    from mobilenet_jax import figures

    held = [[2 * n / 1000 for n in held_activations(network, 224, only)] for only in (False, True)]
    return figures.Memory(name, held[0], held[1] if network.version == "v2" else ())


def _latency_figures(record: dict[str, Any]) -> dict[str, tuple[str, Any]]:
    from mobilenet_jax import figures

    networks = latency.networks(record)
    found = {}
    for batch in sorted({n.batch for n in networks}):
        timings = [
            figures.Timing(n.version, n.batch, n.alpha, n.mult_adds / 1e6, 1e3 * n.measured / n.batch)
            for n in networks
            if n.batch == batch
        ]
        found[f"latency_{batch}"] = (
            f"Measured time of an image against mult-adds, batch {batch}",
            figures.latency(timings),
        )
        layers = latency.distinct(n for n in networks if n.batch == batch)
        times = [figures.LayerTime(x.time.row.layer.kind, 1e6 * x.measured, 1e6 * x.predicted) for x in layers]
        found[f"latency_layers_{batch}"] = (
            f"Predicted against measured time of each layer, batch {batch}",
            figures.predicted(times),
        )
    return found


if __name__ == "__main__":
    sys.exit(main())
