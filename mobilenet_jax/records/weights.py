"""The weights of a trained network as one safetensors file, which is read and written without JAX.

A tensor is named by its path, such as `params/stem/kernel` or `batch_stats/stem/bn/mean`, and has the shape that
`model/mobilenet.py` documents. The metadata says which network the tensors belong to, and how it takes an image.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors import numpy as safetensors

from mobilenet_jax import files
from mobilenet_jax.errors import InputError, first_line

FILE = "weights.safetensors"  # in a run directory
_FOREIGN = "is no file of this package: `python -m mobilenet_jax.weights import` makes one"
_FORMAT = 1  # raise it when an old reader would misread the file
_LARGEST = 1e30  # of the numbers that pixels are scaled with: float32 holds their products


@dataclasses.dataclass(frozen=True)
class Network:
    """What the tensors belong to, and how it takes an image.

    An image is cut to its centre, resized, and scaled from 0..255 to `input_range`. Then `mean` is subtracted from red,
    green and blue, and the result divided by `std`.
    """

    architecture: Mapping[str, Any]  # arguments of `arch.mobilenet`
    input_range: tuple[float, float]
    image_size: int  # side of the centre that is cut out, in pixels
    resolution: int  # side of the network's input
    class_names: Sequence[str] = ()  # in the order of the logits; () if unknown
    dataset: str = ""
    test_accuracy: float | None = None  # top-1, as a fraction
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    source: str = ""  # format of the file that it was imported from; "" if it was trained here
    protocol: str = ""  # "slim" or "torch": how its training cut files for evaluation; "" if unknown, or without files


def write(path: pathlib.Path, variables: Mapping[str, Any], network: Network) -> None:
    """Write nested dicts of arrays, `{"params": ..., "batch_stats": ...}`, atomically."""
    metadata = {key: json.dumps(value) for key, value in dataclasses.asdict(network).items()}
    content = safetensors.save(dict(flat(variables)), {"format": json.dumps(_FORMAT), **metadata})
    with files.replacing(path) as temporary:
        temporary.write_bytes(content)


def read(path: pathlib.Path) -> tuple[dict[str, Any], Network]:
    """Return what `write` wrote; `path` may be the run directory, too.

    Raises:
      InputError: the file cannot be read, is no safetensors file, or was not written by `write`.
    """
    path = _file(path)
    try:
        with path.open("rb") as file:
            if file.read(9)[8:] != b"{":  # which follows the length of the header in all safetensors
                raise ValueError(_FOREIGN)
        with safe_open(path, "numpy") as file:
            if "architecture" not in (texts := file.metadata() or {}):
                raise ValueError(_FOREIGN)
            metadata = {key: json.loads(value) for key, value in texts.items()}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no dict)
        if metadata.pop("format") != _FORMAT:
            raise ValueError("another version of this program wrote it")
        metadata |= {key: tuple(metadata[key]) for key in ("input_range", "class_names")}
        metadata |= {key: tuple(metadata[key]) for key in ("mean", "std") if key in metadata}
        if odd := [name for name, tensor in tensors.items() if tensor.dtype != np.float32]:
            raise ValueError(f"tensor {odd[0]!r} is not float32")
        if field := odd_field(network := Network(**metadata)):
            raise ValueError(f"its description is damaged: {field}")
        return _nested(tensors), network
    except KeyError as e:
        raise InputError(f"{path}: no weights can be read (its description lacks {e})") from None
    except OSError as e:
        raise InputError(f"{path}: no weights can be read ({e.strerror or e})") from None
    except (SafetensorError, ValueError, TypeError, RecursionError) as e:
        raise InputError(f"{path}: no weights can be read ({first_line(e)})") from None


def _file(path: pathlib.Path) -> pathlib.Path:
    """Return the file that a path means, or raise InputError if it is a directory without one."""
    if path.is_dir() and not (path / FILE).is_file():
        raise InputError(f"{path}: is no directory of a finished run: it has no {FILE}")
    return path / FILE if path.is_dir() else path


def identify(path: pathlib.Path) -> tuple[str, Network]:
    """Return eight hex digits of the tensors and the description in a file, and the description; InputError as `read`.

    They are the same for each file with that content, whose bytes are not: safetensors orders no metadata.
    """
    path = _file(path)
    try:
        found = path.stat()
    except OSError as e:
        raise InputError(f"{path}: no weights can be read ({e.strerror})") from None
    return _identify(path, found.st_size, found.st_mtime_ns)


@functools.lru_cache  # the points of a sweep share their weights
def _identify(path: pathlib.Path, size: int, changed: int) -> tuple[str, Network]:
    variables, network = read(path)
    description = dataclasses.asdict(network)
    del description["protocol"]  # what is trained from them does not depend on it, and earlier files lack it
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for name, tensor in sorted(flat(variables), key=lambda pair: pair[0]):
        digest.update(f"{name} {tensor.shape} ".encode() + tensor.tobytes())
    return digest.hexdigest()[:8], network


def flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, np.ndarray]]:
    """Return the arrays of nested dicts by their paths, such as `params/stem/kernel`."""
    found = []
    for key, value in tree.items():
        found += flat(value, f"{prefix}{key}/") if isinstance(value, Mapping) else [(prefix + key, np.array(value))]
    return found


def odd_field(network: Network) -> str:
    """Return the first field whose value a reader would refuse, '' if there is none."""

    def numbers(values: Sequence[Any], count: int) -> bool:
        return len(values) == count and all(type(x) in (int, float) and abs(x) < _LARGEST for x in values)

    def side(value: Any) -> bool:
        return type(value) is int and 1 <= value <= 2**15

    fine = {
        "architecture": isinstance(network.architecture, dict),
        "input_range": numbers(network.input_range, 2),
        "mean": numbers(network.mean, 3),
        "std": numbers(network.std, 3) and 0 not in network.std,
        "image_size": side(network.image_size),
        "resolution": side(network.resolution),
        "class_names": all(isinstance(name, str) for name in network.class_names),
        "protocol": network.protocol in ("", "slim", "torch"),
    }
    return next((name for name, right in fine.items() if not right), "")


def _nested(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, tensor in tensors.items():
        *folders, leaf = name.split("/")
        branch = tree
        for folder in folders:
            branch = branch.setdefault(folder, {})
            if not isinstance(branch, dict):
                raise ValueError(f"tensor {name!r} lies below another one")
        branch[leaf] = tensor
    return tree
