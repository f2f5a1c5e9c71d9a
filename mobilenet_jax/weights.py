"""Take official weights in, evaluate networks on images, and name what images show.

python -m mobilenet_jax.weights import SOURCE OUT.safetensors
python -m mobilenet_jax.weights evaluate WEIGHTS --data DIR [--labels FILE] [--protocol slim] [--resolution 224]
python -m mobilenet_jax.weights predict WEIGHTS IMAGE...
"""

import argparse
import dataclasses
import json
import os
import pathlib
import sys
import warnings

from mobilenet_jax import console
from mobilenet_jax.data import datasets, imagenet, views
from mobilenet_jax.data import images as pictures
from mobilenet_jax.errors import InputError, first_line, number
from mobilenet_jax.networks import arch, cost
from mobilenet_jax.records import weights
from mobilenet_jax.render.tables import columns, plain

_IMAGENET = "imagenet2012"  # as TFDS names it


def main() -> int:
    """Run the command with the arguments of the process, and return its exit code."""
    warnings.filterwarnings("ignore", module="PIL")  # of what is unusual about an image; errors are sentences
    return console.run(_weights)


def _weights() -> None:
    args = _parse()
    {"import": _import, "evaluate": _evaluate, "predict": _predict}[args.command](args)


def _parse() -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m mobilenet_jax.weights", description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", required=True)
    into = commands.add_parser("import", help="turn weights of Keras, TF-slim, TensorFlow Lite or PyTorch into ours")
    into.add_argument("source", type=pathlib.Path, help="a file, the prefix of a checkpoint, or a run directory")
    into.add_argument("out", type=pathlib.Path, metavar="OUT.safetensors")
    into.add_argument("--variables", choices=("auto", "raw", "averaged"), default="auto", help="of a checkpoint")
    into.add_argument("--classes", type=pathlib.Path, metavar="FILE", help="class names, one a line, in their order")
    evaluate = commands.add_parser("evaluate", help="top-1 and top-5 on labelled images")
    evaluate.add_argument("weights", type=pathlib.Path, help="a file of weights, or a run directory")
    kinds = "val/<class>/*.JPEG, ImageNet as TFDS prepares it, or images"
    evaluate.add_argument("--data", type=pathlib.Path, required=True, metavar="DIR", help=kinds)
    evaluate.add_argument("--labels", type=pathlib.Path, metavar="FILE", help="CSV with columns file, label")
    predict = commands.add_parser("predict", help="the five most likely classes of images")
    predict.add_argument("weights", type=pathlib.Path, help="a file of weights, or a run directory")
    predict.add_argument("images", type=pathlib.Path, nargs="+", metavar="IMAGE")
    for each in (into, evaluate, predict):
        each.add_argument("--resolution", type=int, default=0, help="side of the input in pixels, if not the network's")
    for each in (evaluate, predict):
        how = "how an image is cut (default: as in the network's training, slim if it does not say)"
        each.add_argument("--protocol", choices=tuple(views.PROTOCOLS), help=how)
        each.add_argument("--format", choices=("text", "json"), default="text")
    args = parser.parse_args()
    if args.resolution != 0:
        number("--resolution", args.resolution, "a whole number from 1 to 4096", lambda n: 1 <= n <= 4096, whole=True)
    return args


def _import(args: argparse.Namespace) -> None:
    if not args.out.parent.is_dir() or args.out.is_dir() or args.out.suffix != ".safetensors":
        raise InputError(f"{args.out}: must name a file OUT.safetensors in a directory that exists")
    if args.out.exists() and args.source.exists() and args.out.samefile(args.source):
        raise InputError(f"{args.out}: is the source: must name another file")
    names = _class_names(args.classes)
    if args.source.is_dir():
        if args.classes or args.resolution or args.variables != "auto":
            raise InputError(f"{args.source}: --resolution, --classes and --variables are for weights of others")
        from mobilenet_jax.model import mobilenet  # late: imports JAX

        (variables, network), notes = weights.read(args.source), []
        built = mobilenet.assemble(variables, network, str(args.source)).module.arch
    else:
        from mobilenet_jax.transfer import recognise, sandbox

        source = sandbox.read(args.source, args.variables)
        try:
            variables, network = recognise.convert(source, names, args.resolution)
        except InputError as e:
            raise InputError(f"{args.source}: {e}") from None
        built, notes = arch.mobilenet(**network.architecture), [*source.notes]  # type: ignore[arg-type]
        if not (args.resolution or source.resolution):
            notes.append(f"the file does not say its resolution: {network.resolution} pixels")
    try:
        weights.write(args.out, variables, network)
    except OSError as e:
        raise InputError(f"{args.out}: {e.strerror or e}") from None
    knobs = ", ".join(f"{key} {value}" for key, value in network.architecture.items() if key != "version")
    counted = cost.totals(built, network.resolution)
    lines = [f"MobileNet {built.version}, {knobs}", f"params {counted.params:,}, mult-adds {counted.mult_adds:,}"]
    lines[1] += f" at {network.resolution} pixels"
    if network.source:
        lines.append(f"read as {network.source}; {'; '.join(notes)}")
    if imagenet.label_offset(network.class_names):
        lines.append("class 0 of the 1001 is the background: labels of 1000 classes are shifted by one")
    print(plain("\n".join([*lines, f"written: {args.out}"])))


def _class_names(path: pathlib.Path | None) -> tuple[str, ...]:
    if path is None:
        return ()
    try:
        names = tuple(filter(None, map(str.strip, path.read_text(encoding="utf-8-sig").splitlines())))
    except (OSError, ValueError) as e:
        raise InputError(f"--classes={path}: cannot be read ({first_line(e)})") from None
    if not names:
        raise InputError(f"--classes={path}: is empty: must have a name in each line")
    return names


def _evaluate(args: argparse.Namespace) -> None:
    names = tuple(weights.identify(args.weights)[1].class_names)
    own = () if names == imagenet.class_names(len(names)) else names  # whose folders have the names of the classes
    images = _labelled(args.data, args.labels, own)
    from mobilenet_jax.transfer import evaluate  # late: imports JAX

    network = evaluate.of_file(args.weights, args.resolution)
    classes = network.module.arch.num_classes
    if not (args.labels or own) and classes - imagenet.label_offset(network.class_names) != 1000:
        allowed = f"ImageNet's are 1000, or 1001 of which the first is named {imagenet.BACKGROUND!r}"
        raise InputError(f"{args.weights}: has {classes} classes, and {allowed}: give --labels")
    found, _ = evaluate.evaluate(network, images, args.protocol or network.protocol)
    if args.format == "json":
        print(json.dumps(dataclasses.asdict(found)))
        return
    rows = [
        ("top-1", f"{found.top1:.2%}"),
        *([] if found.top5 is None else [("top-5", f"{found.top5:.2%}")]),
        ("images", f"{found.n:,}"),
        ("protocol", f"{found.protocol}, {found.resolution} pixels"),
        ("images/s", f"{found.images_per_second:.1f}"),
    ]
    print("\n".join(columns(rows, 2)))
    if found.label_offset:
        print("The network has 1001 classes: labels are shifted by one, as class 0 is the background.")


def _labelled(
    directory: pathlib.Path, labels: pathlib.Path | None, own: tuple[str, ...]
) -> imagenet.Labelled | pictures.Pictures:
    """Return the images that `--data` and `--labels` name. `own`: the network's classes, () if they are ImageNet's."""
    if labels:
        return imagenet.in_list(directory, labels)
    if own not in ((), tuple(imagenet.synsets())) or not datasets.prepared(_IMAGENET, str(directory)):
        return imagenet.in_folders(directory, own)
    return pictures.load(datasets.describe(_IMAGENET, str(directory)), str(directory))["test"]


def _predict(args: argparse.Namespace) -> None:
    if missing := [path for path in args.images if not path.is_file()]:
        raise InputError(
            f"{missing[0]}: {'is a directory' if missing[0].is_dir() else 'no such file'}: must be an image"
        )
    from mobilenet_jax.transfer import evaluate  # late: imports JAX

    network = evaluate.of_file(args.weights, args.resolution)
    names = network.class_names or [str(i) for i in range(network.module.arch.num_classes)]
    found = evaluate.predict(network, args.images, args.protocol or network.protocol)
    if args.format == "json":
        rows = [
            {"file": str(path), "top5": [{"class": i, "name": names[i], "probability": p} for i, p in best]}
            for path, best in zip(args.images, found, strict=True)
        ]
        print(json.dumps(rows, indent=1))
        return
    for path, best in zip(args.images, found, strict=True):
        print(plain("\n".join([str(path), *(f"{p:8.2%}  {names[i]}" for i, p in best)])))


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.exit(main())
