"""Evaluate official networks with our code on labelled images, and write the record that `report --official` reads.

    python benchmarks/official.py WEIGHTS_DIR IMAGES LABELS.csv results/bench/official/ours.json

WEIGHTS_DIR has `tflite/*.tflite` and `keras/*.h5`. The record has the accuracy of each network, the best class of
each image, and whether that is right. Networks without ImageNet's classes are left out.
"""

import json
import pathlib
import sys
import time

from mobilenet_jax.data import imagenet
from mobilenet_jax.transfer import evaluate, recognise, sandbox


def main(folder: str, images: str, labels: str, out: str) -> None:
    listed = imagenet.in_list(pathlib.Path(images), pathlib.Path(labels))
    networks = {}
    for path in sorted((*pathlib.Path(folder, "tflite").glob("*.tflite"), *pathlib.Path(folder, "keras").glob("*.h5"))):
        start = time.perf_counter()
        variables, network = recognise.convert(sandbox.read(path))
        if not network.class_names:
            continue
        found, classes = evaluate.evaluate(evaluate.of_variables(variables, network, str(path)), listed, "slim")
        offset = imagenet.label_offset(network.class_names)
        right = "".join(
            str(int(best == label + offset)) for best, (_, label) in zip(classes[:, 0], listed, strict=True)
        )
        networks[path.stem] = {
            **{key: network.architecture[key] for key in ("version", "alpha", "num_classes")},
            **{"resolution": network.resolution, "top1": found.top1, "top5": found.top5, "n": found.n},
            "classes": classes[:, 0].tolist(),
            "right": f"{int(right, 2):0{-(-len(right) // 4)}x}",  # one bit for each image, the first one highest
        }
        seconds = time.perf_counter() - start
        print(f"{path.stem}: {found.top1:.2%}, {found.images_per_second:.0f} images/s, {seconds:.0f} s", flush=True)
    text = json.dumps({"protocol": "slim", "networks": networks})
    pathlib.Path(out).write_text(text.replace('"}, "', '"},\n"') + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
