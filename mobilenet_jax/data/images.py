"""Stream pictures of any size in batches that threads read, decode and cut ahead of their use."""

import collections
import dataclasses
import itertools
import pathlib
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import numpy as np

from mobilenet_jax import console
from mobilenet_jax.data import arrays, crops, datasets, decoding, folders, views
from mobilenet_jax.data.datasets import Dataset
from mobilenet_jax.data.imagenet import Labelled
from mobilenet_jax.errors import InputError, first_line

_MOST_UNDECODABLE = 1e-3  # share of a split
_OTHER_FILES = 512  # that a process may open, next to those of the set
_CHUNK = 8  # pictures that a thread takes at a time


class StoredPicture(NamedTuple):
    """A picture as it is stored."""

    name: str
    label: int
    content: bytes  # of the file


class PictureBatch(NamedTuple):
    """A batch of pictures on the host."""

    images: np.ndarray  # uint8 [B, side, side, 3]
    labels: np.ndarray  # int32 [B]
    mask: np.ndarray  # float32 [B]: 1 for a picture, 0 for padding


class Undecodable:
    """The pictures of a split that cannot be decoded. Each is named once."""

    def __init__(self, split: str, size: int):
        self._split, self._most, self._lock = split, int(size * _MOST_UNDECODABLE), threading.Lock()
        self.names: set[str] = set()

    def add(self, name: str, reason: str) -> None:
        """Count and name a picture; raise InputError if there are too many of them."""
        with self._lock:
            if name in self.names:
                return
            self.names.add(name)
            if len(self.names) > self._most:
                raise InputError(
                    f"{name} cannot be decoded ({reason}), and is number {len(self.names):,} of the {self._split} "
                    f"split: at most {self._most:,} are left out, 0.1 % of the split; repair it or remove it"
                )
        console.warn(f"{name} cannot be decoded and is left out: {reason}")


@dataclasses.dataclass(frozen=True)
class Pictures:
    """A split whose pictures are read from disk."""

    read: Callable[[int], StoredPicture]
    indices: np.ndarray  # that `read` takes, int [N]
    undecodable: Undecodable

    def __len__(self) -> int:
        return len(self.indices)

    def decoded(self, position: int) -> tuple[np.ndarray, int] | None:
        """Return the image, uint8 `[H, W, 3]`, and its label; None if it cannot be decoded.

        The next call in the same thread may overwrite the image.
        """
        picture = self.read(int(self.indices[position]))
        try:
            return decoding.decode(picture.content, reuse=True), picture.label
        except decoding.DecodingError as e:
            self.undecodable.add(picture.name, str(e))
            return None


def load(dataset: Dataset, data_dir: str = "") -> dict[str, Pictures]:
    """Open the splits 'train' and 'test' of a streamed set.

    Raises:
      InputError: it is not there, cannot be read, or is not the one that `dataset` describes.
    """
    found = datasets.find_streamed(dataset.name, data_dir)
    if datasets.describe(dataset.name, data_dir) != dataset:
        where = datasets.data_root(data_dir)
        raise InputError(f"data set {dataset.name!r} in {where} has changed since this process started: start again")
    splits = {}
    for name, split, size in (("train", "train", dataset.train_size), ("test", dataset.test_split, dataset.test_size)):
        if isinstance(found, folders.Folders):
            read = _in_folders(datasets.data_root(data_dir), found.paths[split], found.labels[split])
        else:
            read = _in_records(dataset, found, split)
        splits[name] = Pictures(read, np.arange(size), Undecodable(split, size))
    return splits


def holdout(split: Pictures, fraction: float) -> tuple[Pictures, Pictures]:
    """Return the rest and the held-out part of a split, as `arrays.holdout` does."""
    rest, held_out = arrays.holdout_indices(len(split), fraction)
    return dataclasses.replace(split, indices=rest), dataclasses.replace(split, indices=held_out)


def _in_folders(root: pathlib.Path, paths: tuple[str, ...], labels: tuple[int, ...]) -> Callable[[int], StoredPicture]:
    def read(i: int) -> StoredPicture:
        path = root / paths[i]
        try:
            return StoredPicture(str(path), labels[i], path.read_bytes())
        except OSError as e:
            raise InputError(f"{path} cannot be read: {e.strerror or e}; once it can, the same command resumes") from e

    return read


def _in_records(dataset: Dataset, directory: pathlib.Path, split: str) -> Callable[[int], StoredPicture]:
    import tensorflow_datasets as tfds  # late: pictures in folders do not need it
    from tensorflow_datasets.proto import tf_example_pb2

    _allow_open_files(sum(1 for _ in directory.iterdir()))
    skip: Any = tfds.decode.SkipDecoding
    messages: Any = tf_example_pb2
    refusal = f"data set {dataset.name!r} in {directory} has a split {split!r} that cannot be read"
    try:
        builder: Any = tfds.builder_from_directory(directory)
        source = builder.as_data_source(split, decoders={"image": skip()}, file_format=datasets.FILE_FORMAT)
        records, parse = source.data_source, messages.Example.FromString
    except Exception as e:  # TFDS and the readers raise many kinds over damaged files
        raise InputError(f"{refusal} ({first_line(e)})") from e

    def read(i: int) -> StoredPicture:
        try:
            fields = parse(records[i]).features.feature  # `source[i]` takes a third of the time of decoding longer
            name, content = (fields[key].bytes_list.value[0] for key in ("file_name", "image"))
            return StoredPicture(name.decode(), fields["label"].int64_list.value[0], content)
        except Exception as e:
            raise InputError(f"{refusal} ({first_line(e)})") from e

    return read


def _allow_open_files(count: int) -> None:
    """Raise the limit of this process where it allows fewer files at a time: every reader keeps its file open."""
    import resource  # of POSIX systems

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


# A slot of a batch -> the image, uint8 [side, side, 3], and its label; None leaves the slot empty.
_Fill = Callable[[Any], tuple[np.ndarray, int] | None]


class Stream(Iterator[PictureBatch]):
    """Batches in order, of which some are made ahead by the threads of a pool."""

    def __init__(self, pool: ThreadPoolExecutor, threads: int, rows: Iterable[list[Any]], fill: _Fill, side: int):
        self._pool, self._rows, self._fill, self._side = pool, iter(rows), fill, side
        self._threads = threads
        self._started: collections.deque[tuple[PictureBatch, list[Future[None]]]] = collections.deque()

    def ready(self, seconds: float) -> bool:
        """Return whether the next batch is made, after waiting at most so long."""
        self._start()
        return not self._started or not wait(self._started[0][1], seconds).not_done

    def __next__(self) -> PictureBatch:
        """Return the next batch; raises what making it raised."""
        self._start()
        if not self._started:
            raise StopIteration
        batch, parts = self._started.popleft()
        self._start()
        for part in parts:
            part.result()
        return batch

    def _start(self) -> None:
        """Start as many batches as keep all threads at work while one batch is waited for. Each takes new memory."""
        while len(self._started) < 2 or sum(len(parts) for _, parts in self._started) < 3 * self._threads:
            row = next(self._rows, None)
            if row is None:
                return
            batch = PictureBatch(
                np.zeros((len(row), self._side, self._side, 3), np.uint8),
                np.zeros(len(row), np.int32),
                np.zeros(len(row), np.float32),
            )
            slots = range(0, len(row), _CHUNK)
            parts = [self._pool.submit(self._make, batch, row[at : at + _CHUNK], at) for at in slots]
            self._started.append((batch, parts))

    def _make(self, batch: PictureBatch, slots: list[Any], at: int) -> None:
        for i, slot in enumerate(slots, at):
            if (found := self._fill(slot)) is not None:
                batch.images[i], batch.labels[i] = found
                batch.mask[i] = 1


class Loader:
    """Streams of the batches of a run, made by one pool of threads.

    Order, crops and flips follow from (seed, epoch, picture), so a stream starts at any step without those before it.
    """

    def __init__(self, threads: int):
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def training(
        self, split: Pictures, crop: crops.Crop, seed: int, steps: range, steps_per_epoch: int, batch_size: int
    ) -> Stream:
        """Return the training batches of `steps`, counted from the start of the run.

        A picture that cannot be decoded is replaced by the next one of the epoch's order.
        """

        def rows() -> Iterator[list[tuple[int, np.ndarray, int]]]:
            for epoch, group in itertools.groupby(steps, lambda step: step // steps_per_epoch):
                order = arrays.epoch_order(len(split), seed, epoch)
                for step in group:
                    first = step % steps_per_epoch * batch_size
                    yield [(epoch, order, first + i) for i in range(batch_size)]

        def fill(slot: tuple[int, np.ndarray, int]) -> tuple[np.ndarray, int]:
            epoch, order, at = slot
            for position in itertools.chain(order[at:], order[:at]):
                if (found := split.decoded(position)) is not None:
                    # The last number keeps this generator apart from that of the order.
                    rng = np.random.default_rng([seed, epoch, int(split.indices[position]), 1])
                    return crop(found[0], rng), found[1]
            raise InputError("no picture of the train split can be decoded")

        return Stream(self._pool, self._threads, rows(), fill, crop.side)

    def evaluation(self, split: Pictures | Labelled, protocol: str, side: int, batch_size: int) -> Stream:
        """Return batches that hold each picture once. Their masks leave out what pads the last one.

        They also leave out what a split has that cannot be decoded. Of files with labels, each must be readable.
        """

        def fill(position: int | None) -> tuple[np.ndarray, int] | None:
            if position is None:
                return None
            if not isinstance(split, Pictures):
                path, label = split[position]
                return views.read(path, protocol, side), label
            found = split.decoded(position)
            return found and (views.PROTOCOLS[protocol](found[0], side), found[1])

        padded = (
            [i if i < len(split) else None for i in range(at, at + batch_size)]
            for at in range(0, len(split), batch_size)
        )
        return Stream(self._pool, self._threads, padded, fill, side)
