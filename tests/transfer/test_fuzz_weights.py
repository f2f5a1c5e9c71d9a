"""Damaged and rearranged files of weights: each is imported, or gives one sentence and writes nothing.

FUZZ=2000 pytest tests/transfer/test_fuzz_weights.py tries 2,000 files instead of 12.
"""

import json
import os
import random
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from safetensors import numpy as safetensors
from transfer_helpers import tensor, torch_references, unpacked

from mobilenet_jax.records import weights

COUNT = int(os.environ.get("FUZZ", "12"))


@pytest.fixture(scope="module")
def wholes(tmp_path_factory) -> list[tuple[str, bytes]]:
    """Return an intact file of each format, the checkpoint's index as the first of its two."""
    folder = unpacked("slim.tar.xz", unpacked("tiny.tar.xz", tmp_path_factory.mktemp("wholes")))
    names = ("whole.h5", "weights.h5", "whole.keras", "float.tflite", "int8.tflite", "v1.ckpt.index")
    shapes = torch_references()["torchvision_v2"]["shapes"]
    content = safetensors.save({key: tensor(key, shape) for key, shape in shapes.items()})
    found = [(name, (folder / name).read_bytes()) for name in names] + [("model.safetensors", content)]
    (folder / "keep").write_bytes((folder / "v1.ckpt.data-00000-of-00001").read_bytes())
    return [*found, ("v1.ckpt.data-00000-of-00001", (folder / "keep").read_bytes())]


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Return the content with a few bytes changed, removed, doubled or cut; mostly where the structure lies."""
    found = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        end = rng.choice([64, 1024, 8192, len(found)])
        at = rng.randrange(max(1, min(end, len(found))))
        if rng.random() < 0.3:
            at = max(0, len(found) - 1 - at)
        how = rng.randrange(6)
        if how == 0:
            found[at : at + 1] = bytes([rng.randrange(256)])
        elif how == 1:
            found[at : at + 4] = rng.choice([b"\xff" * 4, b"\0" * 4, b"\xff\xff\xff\x7f", b"\1\0\0\0"])
        elif how == 2:
            del found[at : at + rng.choice([1, 8, 100])]
        elif how == 3:
            found[at:at] = found[at : at + rng.choice([1, 8, 100])]
        elif how == 4 and rng.random() < 0.3:
            del found[at:]
        else:
            found[at : at + 8] = rng.randbytes(8)
    return bytes(found)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    line = [sys.executable, str(ROOT / "tests" / "fork_server.py"), "weights"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(line, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout

        def call(*arguments: object) -> tuple[int, str, str]:
            assert process.stdin and process.stdout
            process.stdin.write(json.dumps([*map(str, arguments)]) + "\n")
            process.stdin.flush()
            return tuple(json.loads(process.stdout.readline()))

        yield call
        process.stdin.close()


@pytest.mark.parametrize("seed", range(COUNT))
def test_damaged_files(seed, wholes, run, tmp_path):
    rng = random.Random(seed)
    contents = dict(wholes)
    name, content = wholes[seed % len(wholes)]
    for other in [name] if "ckpt" not in name else [key for key in contents if "ckpt" in key]:
        (tmp_path / other).write_bytes(contents[other])
    (tmp_path / name).write_bytes(damaged(content, rng))
    out = tmp_path / "out" / "x.safetensors"
    out.parent.mkdir()
    code, text, errors = run("import", tmp_path / name, out)
    if code == 0:
        assert "written" in text and not errors
        shapes = {key: array.shape for key, array in safetensors.load_file(out).items()}
        assert all(np.isfinite(array).all() for array in safetensors.load_file(out).values()) and shapes
        weights.read(out)
    else:
        assert code == 1 and not text and re.fullmatch(r"error: [^\n]+\n", errors), (code, text, errors)
        assert not list(out.parent.iterdir())
