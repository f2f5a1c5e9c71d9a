"""Evaluate official networks with our code on labelled images, and write the record of `results/official/`.

    python benchmarks/official.py WEIGHTS_DIR IMAGES LABELS.csv results/official/ours.json

WEIGHTS_DIR has `tflite/*.tflite` and `keras/*.h5`. The record has the accuracy of each network and the best class of
each image. Networks without ImageNet's classes are left out.
"""

import json
import pathlib
import sys
import time

from mobilenet_jax.data import imagenet
from mobilenet_jax.model import mobilenet
from mobilenet_jax.transfer import evaluate, recognise, sandbox


def main(folder: str, images: str, labels: str, out: str) -> None:
    listed = imagenet.in_list(pathlib.Path(images), pathlib.Path(labels))
    networks = {}
    for path in sorted((*pathlib.Path(folder, "tflite").glob("*.tflite"), *pathlib.Path(folder, "keras").glob("*.h5"))):
        start = time.perf_counter()
        variables, network = recognise.convert(sandbox.read(path))
        if not network.class_names:
            continue
        found, classes = evaluate.evaluate(mobilenet.assemble(variables, network, str(path)), listed, "slim")
        networks[path.stem] = {
            **{key: network.architecture[key] for key in ("version", "alpha", "num_classes")},
            **{"resolution": network.resolution, "top1": float(found.top1), "top5": float(found.top5), "n": found.n},
            "classes": classes[:, 0].tolist(),
        }
        seconds = time.perf_counter() - start
        print(f"{path.stem}: {found.top1:.2%}, {found.images_per_second:.0f} images/s, {seconds:.0f} s", flush=True)
    text = json.dumps({"protocol": "slim", "networks": networks})
    pathlib.Path(out).write_text(text.replace(']}, "', ']},\n"') + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
