"""Tell the formats of weights by their content, and read them."""

import pathlib
import zipfile
from collections.abc import Callable

from mobilenet_jax.errors import InputError
from mobilenet_jax.transfer import keras, slim, tflite, torch
from mobilenet_jax.transfer.source import Source

ALLOWED = (
    "Keras (.h5, .keras), a TF-slim checkpoint (PREFIX, with PREFIX.index and PREFIX.data-*), TensorFlow Lite, "
    "safetensors of torchvision, timm or Hugging Face, and a run directory"
)
_PICKLE = "is a pickle, which may run code when it is read: save its state dict as safetensors instead"


def read(path: pathlib.Path, variables: str) -> Source:
    """Return the network in a file.

    Args:
      path: a file, or the prefix of a checkpoint.
      variables: of a checkpoint: 'raw', 'averaged', or 'auto' (`slim.read`).

    Raises:
      InputError: the file is of no format that can be read, or does not hold a MobileNet.
    """
    if (prefix := slim.prefix(path)) is not None:
        return slim.read(prefix, variables)
    if variables != "auto":
        raise InputError(f"--variables={variables}: only a TF-slim checkpoint has averaged variables")
    return reader(path)(path)


def reader(path: pathlib.Path) -> Callable[[pathlib.Path], Source]:
    """Return the function that reads a file, by its first bytes."""
    with path.open("rb") as file:
        head = file.read(16)
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return keras.read
    if head.startswith(b"PK"):
        names = zipfile.ZipFile(path).namelist() if zipfile.is_zipfile(path) else []
        if any(name.endswith("data.pkl") for name in names):
            raise InputError(_PICKLE)
        return keras.read
    if head[4:8] == b"TFL3":
        return tflite.read
    if head[8:9] == b"{":
        return torch.read
    if head.startswith(b"\x80") and head[1:2] in b"\1\2\3\4\5":
        raise InputError(_PICKLE)
    raise InputError(f"is of no known format: allowed are {ALLOWED}")
