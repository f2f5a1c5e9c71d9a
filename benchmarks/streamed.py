"""Images/s of training on pictures from disk, next to what reading alone and training alone allow.

    python benchmarks/streamed.py DIR --out results/bench/cpu_streamed.json

DIR holds train/<class>/ and val/<class>/. Three measurements take turns: batches are made and thrown away; one batch
is trained on again and again; and a run trains on the set. If reading and training share the cores and lose nothing,
the run reaches 1 / (1 / training + 1 / reading). The network is MobileNet v1 at alpha = 0.25 and 128 pixels.
"""

import argparse
import itertools
import json
import pathlib
import statistics
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from train_step import cpu_name

from mobilenet_jax.training import devices, host

BATCHES = 40  # of a measurement of one part


def spec_of(directory: str):
    from configs import imagenet_sgd
    from mobilenet_jax import config

    c = imagenet_sgd.get_config()
    c.data.name, c.data.dir = "folder", directory
    c.model.alpha, c.model.rho, c.train.batch_size, c.train.epochs = 0.25, 0.571, 64, 6
    c.train.dtype, c.optim.warmup_epochs, c.wandb.mode = "float32", 0.0, "disabled"
    return config.resolve(c)


def parts(spec, inputs) -> tuple[float, float]:
    """Return the rates of reading alone and of training alone, in images/s."""
    import jax

    from mobilenet_jax.training.compile import compile_runs

    program = compile_runs([spec], inputs)
    assert program.streamed
    stream, size = program.streamed.training(0), spec.config.train.batch_size
    batch = [next(stream) for _ in range(8)][-1]  # they were made ahead
    started = time.perf_counter()
    read = sum(len(each.labels) for each in itertools.islice(stream, BATCHES))
    reading = read / (time.perf_counter() - started)
    program.streamed.close()

    state, call, given = program.join(program.states), program.call(1), program.pictures(batch)
    for i in range(BATCHES + 3):
        if i == 3:
            jax.block_until_ready(state)
            started = time.perf_counter()
        state, metrics = call(state, given, program.hyper)
        jax.block_until_ready(metrics)
    return reading, BATCHES * size / (time.perf_counter() - started)


def run(spec) -> float:
    """Return the images/s of a run."""
    from mobilenet_jax.records import directory
    from mobilenet_jax.training import loop

    with tempfile.TemporaryDirectory() as place:
        path = pathlib.Path(place, spec.run_name)
        assert loop.run(spec, path) == 0
        summary = directory.read_summary(path)
    assert summary
    return summary.train_images_per_second


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    host.keep_memory()
    from mobilenet_jax.training import loop

    spec = spec_of(args.directory)
    rounds = []
    for _ in range(args.rounds):
        reading, training = parts(spec, loop.prepare(spec))
        both = run(spec)
        rounds.append({"reading": reading, "training": training, "run": both})
        rounds[-1]["share"] = both * (1 / reading + 1 / training)
        print({name: round(value, 3) for name, value in rounds[-1].items()}, flush=True)
    record = {"cpu": cpu_name(), "cores": devices.cores(), "pictures": spec.train_size, "side": spec.resolution}
    record |= {name: statistics.median(each[name] for each in rounds) for name in rounds[0]} | {"rounds": rounds}
    if args.out:
        args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
