"""Images/s of input pipelines: decode, random-resized crop to 224, flip, batches of 64 uint8 images.

    python benchmarks/input.py --sets full=DIR small=DIR --records DIR --torch PYTHON --tf PYTHON --out input.json

DIR holds train/<synset>/ and val/<synset>/, and in --records it is what `python -m mobilenet_jax.prepare` writes.
PYTHON is the interpreter of an environment with torchvision and timm, or with TensorFlow. All contenders take turns, on
one thread each and then on all cores. CPU times compare on a machine that does other things as well, wall times do not.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

SIDE, BATCH, SCALE, RATIO = 224, 64, 0.08, 4 / 3
OURS = ("ours", "ours_records")


def ours(root, threads):
    from mobilenet_jax.data import crops, datasets, images

    split = images.load(datasets.describe("imagenet2012", str(root)), str(root))["train"]
    loader = images.Loader(threads)
    steps = -(-len(split) // BATCH)

    def epoch(number):
        crop = crops.Crop(SIDE, SCALE, RATIO, 0, True, "slim")
        size = len(split) // steps
        for batch in loader.training(split, crop, 0, range(number * steps, (number + 1) * steps), steps, size):
            yield len(batch.labels)

    return epoch


def torchvision(root, threads):
    import torch
    from torchvision import datasets, transforms

    torch.set_num_threads(1)
    view = [transforms.RandomResizedCrop(SIDE, (SCALE, 1), (1 / RATIO, RATIO)), transforms.RandomHorizontalFlip()]
    found = datasets.ImageFolder(root / "train", transforms.Compose([*view, transforms.PILToTensor()]))
    workers = threads if threads > 1 else 0  # 0: in this process

    def epoch(number):
        for batch, _ in torch.utils.data.DataLoader(found, BATCH, shuffle=True, num_workers=workers):
            yield len(batch)

    return epoch


def timm(root, threads):
    import torch
    from timm.data import create_dataset, create_loader

    torch.set_num_threads(1)
    found = create_dataset("", root=str(root / "train"))
    options = {"scale": (SCALE, 1), "ratio": (1 / RATIO, RATIO), "interpolation": "bilinear", "hflip": 0.5}
    workers = threads if threads > 1 else 0
    loader = create_loader(
        found, (3, SIDE, SIDE), BATCH, is_training=True, use_prefetcher=False,
        num_workers=workers, persistent_workers=False, device=torch.device("cpu"), color_jitter=None, **options,
    )  # fmt: skip

    def epoch(number):
        for batch, _ in loader:
            yield len(batch)

    return epoch


def tfdata(root, threads):
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    paths = sorted(map(str, (root / "train").glob("*/*")))
    full = tf.constant([[[0.0, 0.0, 1.0, 1.0]]])

    def view(path):
        content = tf.io.read_file(path)
        shape = tf.io.extract_jpeg_shape(content)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            shape, full, min_object_covered=0.0, area_range=(SCALE, 1.0), aspect_ratio_range=(1 / RATIO, RATIO)
        )
        box = tf.stack([begin[0], begin[1], size[0], size[1]])
        image = tf.image.resize(tf.image.decode_and_crop_jpeg(content, box, channels=3), (SIDE, SIDE))
        return tf.cast(tf.image.random_flip_left_right(image) + 0.5, tf.uint8)

    found = tf.data.Dataset.from_tensor_slices(paths).shuffle(len(paths)).map(view, num_parallel_calls=threads)
    found = found.batch(BATCH).prefetch(2)
    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    found = found.with_options(options)

    def epoch(number):
        for batch in found.as_numpy_iterator():
            yield len(batch)

    return epoch


CONTENDERS = {"ours": ours, "ours_records": ours, "torchvision": torchvision, "timm": timm, "tf.data": tfdata}


def contend(name, root, threads):
    """Read the set once for each line of standard input, and print what it took."""
    epoch = CONTENDERS[name](root, threads)
    for number, _ in enumerate(sys.stdin):
        before, started = os.times(), time.perf_counter()
        count, after = sum(epoch(number)), os.times()
        cpu = sum(after[:4]) - sum(before[:4])  # with those of workers, which have ended
        print(json.dumps({"images": count, "wall": time.perf_counter() - started, "cpu": cpu}), flush=True)


def start(python, name, root, threads):
    here = pathlib.Path(__file__).resolve()
    path = os.pathsep.join(filter(None, [str(here.parent.parent), os.environ.get("PYTHONPATH")]))
    cores = sorted(os.sched_getaffinity(0))[:threads]
    return subprocess.Popen(
        [python, str(here), "--contender", name, "--root", str(root), "--threads", str(threads)],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )  # fmt: skip


def measure(cases, rounds):
    """Return the rounds of each case, which take turns; the first round is a warm-up."""
    running = {key: start(*command) for key, command in cases.items()}
    found = {key: [] for key in cases}
    for _ in range(rounds + 1):
        for key, process in running.items():
            process.stdin.write("\n")
            process.stdin.flush()
            line = process.stdout.readline()
            if not line:
                raise SystemExit(f"{key} has ended")
            found[key].append(json.loads(line))
    for process in running.values():
        process.stdin.close()
        process.wait()
    return {key: each[1:] for key, each in found.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=[], metavar="NAME=DIR")
    parser.add_argument("--records", type=pathlib.Path)
    parser.add_argument("--torch", default="", metavar="PYTHON")
    parser.add_argument("--tf", default="", metavar="PYTHON")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--root", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contender:
        return contend(args.contender, args.root, args.threads)
    pythons = {"ours": sys.executable, "torchvision": args.torch, "timm": args.torch, "tf.data": args.tf}
    record = {"side": SIDE, "batch": BATCH, "cores": len(os.sched_getaffinity(0)), "rows": []}
    for threads in dict.fromkeys((1, record["cores"])):
        for name, _, root in (each.partition("=") for each in args.sets):
            cases = {each: (python, each, pathlib.Path(root), threads) for each, python in pythons.items() if python}
            if args.records and name == "full":
                cases["ours_records"] = (sys.executable, "ours_records", args.records, threads)
            for each, rounds in measure(cases, args.rounds).items():
                row = {"set": name, "contender": each, "threads": threads, "rounds": rounds}
                row["images_per_cpu_second"] = statistics.median(r["images"] / r["cpu"] for r in rounds)
                row["images_per_second"] = statistics.median(r["images"] / r["wall"] for r in rounds)
                record["rows"].append(row)
                print(
                    f"{name:6} {each:13} {threads} threads {row['images_per_cpu_second']:7,.0f} images per CPU second "
                    f"{row['images_per_second']:7,.0f} images/s",
                    flush=True,
                )
    if args.out:
        args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
