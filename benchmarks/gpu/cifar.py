"""Real CIFAR-10 for a machine without a network: pack it into two parts here, train from them there.

    python cifar.py pack DIR [--archive cifar-10-binary.tar.gz]     # DIR/1 and DIR/2, 49 MiB each
    python cifar.py train DIR --runs "v1-1:200 v2-0.5:80" --out FILE --workdir RUNS --seconds 280

The parts are lossless WebP images of 5,000 pictures each; the unpacked content is checked by sha256.
"""

import argparse
import hashlib
import json
import pathlib
import statistics
from concurrent.futures import ThreadPoolExecutor

import adapter
import measure
import numpy as np
from PIL import Image

SHEET, COLUMNS = 5000, 50  # pictures per sheet, and per row of a sheet
SPLITS = {"train": 50_000, "test": 10_000}
FIGURES = ("train_images_per_second", "compile_seconds", "train_seconds", "eval_seconds", "wall_seconds")


def sheets() -> list[tuple[str, int, int]]:
    """Return (split, first picture, part) of each sheet: six sheets are part 1, six are part 2."""
    starts = [(split, start) for split, size in SPLITS.items() for start in range(0, size, SHEET)]
    return [(split, start, 1 + (i >= 6)) for i, (split, start) in enumerate(starts)]


def pack(directory: pathlib.Path, archive: str, data_dir: str) -> None:
    found = adapter.cifar10(archive, data_dir)
    for split, start, part in sheets():
        place = directory / str(part)
        place.mkdir(parents=True, exist_ok=True)
        images, labels = (array[start : start + SHEET] for array in found[split])
        sheet = images.reshape(-1, COLUMNS, 32, 32, 3).transpose(0, 2, 1, 3, 4).reshape(-1, COLUMNS * 32, 3)
        path = place / f"{split}_{start:05d}.webp"
        Image.fromarray(np.ascontiguousarray(sheet)).save(path, lossless=True, quality=50, method=4, exact=True)
        np.save(place / f"{split}_{start:05d}.npy", labels.astype(np.uint8))
        assert (unpack(path)[0] == images).all()
        print(f"{path}  {path.stat().st_size / 2**20:.1f} MiB", flush=True)


def unpack(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    sheet = np.asarray(Image.open(path).convert("RGB"))
    images = sheet.reshape(-1, 32, COLUMNS, 32, 3).transpose(0, 2, 1, 3, 4).reshape(-1, 32, 32, 3)
    return images, np.load(path.with_suffix(".npy"))


def load(directories: list[pathlib.Path]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return both splits from the parts in these directories; exit if one is missing or has other content."""
    paths = []
    for split, start, part in sheets():
        name = f"{split}_{start:05d}.webp"
        path = next((d / sub / name for d in directories for sub in ("", str(part)) if (d / sub / name).exists()), None)
        if path is None:
            raise SystemExit(f"{name} of part {part} is in none of {', '.join(map(str, directories))}")
        paths.append(path)
    with ThreadPoolExecutor() as pool:
        pieces = list(pool.map(unpack, paths))
    splits = {}
    for split in SPLITS:
        chosen = [piece for piece, path in zip(pieces, paths, strict=True) if path.name.startswith(split)]
        images, labels = (np.concatenate([piece[i] for piece in chosen]) for i in (0, 1))
        if hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest() != adapter.cifar10_digests()[split]:
            raise SystemExit(f"{split}: the unpacked images are not the published ones")
        splits[split] = images, labels.astype(np.int32)
    return splits


def settings_of(args: argparse.Namespace, epochs: int) -> dict:
    return {
        "train.epochs": epochs,
        "train.batch_size": args.batch,
        "train.dtype": args.dtype,
        "train.eval_epochs": max(1, epochs // 10),
        "train.checkpoint_epochs": float(epochs),  # one at the end, as an epoch takes less than a second
        "augment.pad": 4,
        "optim.warmup_epochs": min(5.0, epochs / 4),
        **json.loads(args.settings),
    }


def train(args: argparse.Namespace) -> None:
    splits = load([pathlib.Path(directory) for directory in args.directories])
    record = measure.record_for(args)
    rows = []
    for run in args.runs.split():
        network, _, epochs = run.partition(":")
        rows.append({"network": network, "settings": settings_of(args, int(epochs or 200)), "seeds": args.seeds})
    record.plan(rows)
    for i, row in enumerate(rows):
        if (left := record.left() - 10) < 10:  # a stopped run needs seconds to save its checkpoint
            break
        share = left if i + 1 == len(rows) else left * 0.6
        with record.measuring(row):
            found = adapter.train_runs(row["network"], range(args.seeds), row["settings"], splits, args.workdir, share)
            if not found:
                row["stopped_after"] = share
                continue
            accuracies = [each["test_accuracy"] for each in found if each["test_accuracy"] is not None]
            row["test_accuracy"] = statistics.fmean(accuracies) if accuracies else None
            row |= {"each": accuracies, "statuses": [each["status"] for each in found]}
            row |= {key: found[0].get(key) for key in FIGURES}
    record.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    p = commands.add_parser("pack")
    p.add_argument("directory", type=pathlib.Path)
    p.add_argument("--archive", default="", help="the published binary archive, instead of the set that TFDS prepared")
    p.add_argument("--data_dir", default="", help="of TFDS")
    p = commands.add_parser("train")
    p.add_argument("directories", nargs="+", help="hold the parts")
    p.add_argument("--runs", default="v1-1:200 v2-0.5:80", help="networks and their epochs, one after another")
    p.add_argument("--seeds", type=int, default=1, help="trained as one program")
    p.add_argument("--batch", type=int, default=128)
    p.add_argument("--dtype", default="bfloat16")
    p.add_argument("--settings", default="{}", help="more keys of the config, as JSON: '{\"optim.lr\": 0.2}'")
    p.add_argument("--out", type=pathlib.Path, required=True)
    p.add_argument("--workdir", type=pathlib.Path, required=True, help="for the run directories")
    p.add_argument("--seconds", type=float, default=280.0)
    args = parser.parse_args()
    if args.command == "pack":
        pack(args.directory, args.archive, args.data_dir)
    else:
        train(args)


if __name__ == "__main__":
    main()
