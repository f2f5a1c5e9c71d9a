"""Write ImageNet as TFDS does, from its official archives and without TensorFlow."""

import contextlib
import functools
import io
import json
import pathlib
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from PIL import Image

from mobilenet_jax import console, files
from mobilenet_jax.data import datasets, decoding, folders, imagenet
from mobilenet_jax.data.progress import progress
from mobilenet_jax.errors import InputError, first_line

NAME = "imagenet2012"
_VAL_SHARD = 1000  # images
_QUALITY = 92  # of JPEGs that are written again
_SOURCE = "source.json"  # what a directory is made from
_DAMAGE = (tarfile.TarError, ValueError, OverflowError)  # the latter two over odd headers
_BLOCK = 512  # bytes

Member = tuple[str, str, bytes]  # name, synset and content of a file in an archive


def prepare(train: pathlib.Path, val: pathlib.Path, root: pathlib.Path, resize: int, threads: int) -> pathlib.Path:
    """Write `root`/imagenet2012/VERSION from the archives, or go on with it, and return it.

    A shard holds the training images of one class, or 1,000 validation images, in the order of their names. It is
    written whole or not at all, so a call that was killed loses one shard. The directory gets its name at the end.

    Args:
      train: ILSVRC2012_img_train.tar, an archive of one archive per class.
      val: ILSVRC2012_img_val.tar.
      resize: largest shorter side of an image in pixels; larger images are made smaller. 0 keeps the files as they are.
      threads: that make images smaller.

    Raises:
      InputError: an archive cannot be read or is another one, or `root` cannot be written, or holds something else.
    """
    import tensorflow_datasets as tfds

    source = {path.name: path.stat().st_size for path in (train, val)} | {"resize": resize}
    if found := datasets.prepared(NAME, str(root)):
        if (found / _SOURCE).exists():
            _check_source(found, source)
        console.say(f"{NAME} is already prepared in {found}")
        return found
    if folders.are_in(root):
        raise InputError(f"{root} holds folders of pictures (train/ or val/): name another directory")
    cls: Any = tfds.builder_cls(NAME)
    target = pathlib.Path(cls(data_dir=root, file_format=datasets.FILE_FORMAT).data_dir)
    partial = target.with_name(f".{target.name}.partial")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with files.lock(partial.with_name(".lock"), timeout=0):
            _check_source(partial, source)
            builder: Any = cls(data_dir=root, file_format=datasets.FILE_FORMAT)
            with contextlib.ExitStack() as opened, ThreadPoolExecutor(threads) as pool:
                write = functools.partial(_write_split, partial, builder, functools.partial(_stored, resize), pool)
                shards = {"train": _train_shards(opened, train), "validation": _val(opened, val)}
                lengths = {split: write(split, found) for split, found in shards.items()}
            _write_metadata(builder, partial, target, lengths)
            partial.rename(target)
        partial.with_name(".lock").unlink(missing_ok=True)
    except TimeoutError:
        raise InputError(f"another process prepares {NAME} in {root}") from None
    except (OSError, RuntimeError) as e:  # the latter of array_record, over full disks and damaged files
        where, what = getattr(e, "filename", None) or root, getattr(e, "strerror", None) or first_line(e)
        raise InputError(f"{where}: {what}; once that is solved, the same command goes on") from e
    found = datasets.describe(NAME, str(root))
    known = datasets.DATASETS[NAME]
    for split, count, whole in (
        ("training", found.train_size, known.train_size),
        ("validation", found.test_size, known.test_size),
    ):
        if count != whole:
            console.warn(f"NOTE: the archives hold {count:,} {split} images; ImageNet has {whole:,}")
    return target


def _check_source(partial: pathlib.Path, source: dict[str, Any]) -> None:
    """Remember what the directory is made from; raise InputError if it was begun from something else."""
    path = partial / _SOURCE
    if not path.exists():
        files.write_atomically(path, json.dumps(source))
    elif json.loads(path.read_text()) != source:
        raise InputError(f"{partial} is made from other archives or with another --resize: remove it")


def _write_split(
    partial: pathlib.Path,
    builder: Any,
    stored: Callable[[bytes], bytes],
    pool: ThreadPoolExecutor,
    split: str,
    shards: Sequence[Callable[[], Iterable[Member]]],
) -> list[tuple[int, int]]:
    """Write the shards that are missing; return the number of images and of bytes of each."""
    from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

    features, lengths = builder.info.features, []
    with progress(f"writing the {split} split to {partial}: {len(shards):,} files", len(shards)) as advance:
        for i, members in enumerate(shards):
            path = partial / f"{NAME}-{split}.{datasets.FILE_FORMAT}-{i:05}-of-{len(shards):05}"
            if not path.exists():
                with files.replacing(path) as temporary:
                    # JPEGs do not compress, and TFDS's records have no fixed order within.
                    writer: Any = ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
                    for batch in _groups(members(), 64):
                        contents = pool.map(stored, [content for _, _, content in batch])
                        for (name, synset, _), content in zip(batch, contents, strict=True):
                            example = {"image": io.BytesIO(content), "label": synset, "file_name": name}
                            writer.write(features.serialize_example(features.encode_example(example)))
                    writer.close()
            reader: Any = ArrayRecordReader(str(path))
            lengths.append((reader.num_records(), path.stat().st_size))
            reader.close()
            advance(1)
    return lengths


def _groups(members: Iterable[Member], size: int) -> Iterator[list[Member]]:
    group = []
    for member in members:
        group.append(member)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _stored(resize: int, content: bytes) -> bytes:
    """Return the file as it is stored; one that cannot be decoded is kept, and training will name it."""
    if not resize:
        return content
    try:
        image = Image.fromarray(decoding.decode(content))
    except decoding.DecodingError:
        return content
    if (shorter := min(image.size)) <= resize:
        return content
    smaller, result = [max(resize, round(side * resize / shorter)) for side in image.size], io.BytesIO()
    image.resize((smaller[0], smaller[1]), Image.Resampling.LANCZOS).save(result, "JPEG", quality=_QUALITY)
    return result.getvalue()


def _write_metadata(
    builder: Any, partial: pathlib.Path, target: pathlib.Path, lengths: dict[str, list[tuple[int, int]]]
) -> None:
    import tensorflow_datasets as tfds

    splits = []
    for split, shards in lengths.items():
        names = {"data_dir": target, "dataset_name": NAME, "split": split, "filetype_suffix": datasets.FILE_FORMAT}
        template: Any = tfds.core.ShardedFileTemplate(**names)
        counts, sizes = [count for count, _ in shards], sum(size for _, size in shards)
        splits.append(
            tfds.core.SplitInfo(name=split, shard_lengths=counts, num_bytes=sizes, filename_template=template)
        )
    builder.info.set_splits(tfds.core.SplitDict(splits))
    builder.info.write_to_directory(partial)


def _train_shards(opened: contextlib.ExitStack, path: pathlib.Path) -> list[Callable[[], Iterator[Member]]]:
    """Return what reads the images of each class, for the classes in the archive of archives."""
    tar = opened.enter_context(_open(path, path))
    known, inner = imagenet.synsets(), {}
    for member in _members(tar, path):
        synset = pathlib.PurePosixPath(member.name).name.removesuffix(".tar")
        if synset not in known or not member.name.endswith(".tar"):
            raise InputError(f"{path} holds {member.name!r}: the training archive holds n01440764.tar and the like")
        inner[synset] = member

    def read(synset: str) -> Iterator[Member]:
        stream = tar.extractfile(inner[synset])
        assert stream is not None
        with _open(path, stream, f"{synset}.tar in ") as of_class:
            for member in sorted(_members(of_class, path), key=lambda member: member.name):
                yield pathlib.PurePosixPath(member.name).name, synset, _content(of_class, member)

    return [functools.partial(read, synset) for synset in sorted(inner)]


def _val(opened: contextlib.ExitStack, path: pathlib.Path) -> list[Callable[[], Iterator[Member]]]:
    """Return what reads each thousand of the validation images; labels are TFDS's, by the numbers in the names."""
    import tensorflow_datasets as tfds

    tar = opened.enter_context(_open(path, path))
    labels = tfds.core.tfds_path(f"datasets/{NAME}/validation_labels.txt").read_text().split()
    found = []
    for member in sorted(_members(tar, path), key=lambda member: pathlib.PurePosixPath(member.name).name):
        name = pathlib.PurePosixPath(member.name).name
        number = name.removeprefix("ILSVRC2012_val_").removesuffix(".JPEG")
        if not (number.isascii() and number.isdecimal() and 1 <= int(number) <= len(labels)):
            raise InputError(f"{path} holds {member.name!r}: the validation archive holds ILSVRC2012_val_00000001.JPEG")
        found.append((name, labels[int(number) - 1], member))

    def read(at: int) -> Iterator[Member]:
        for name, synset, member in found[at : at + _VAL_SHARD]:
            yield name, synset, _content(tar, member)

    return [functools.partial(read, at) for at in range(0, len(found), _VAL_SHARD)]


def _open(path: pathlib.Path, source: Any, part: str = "") -> tarfile.TarFile:
    """Open an archive: the file `path`, or a stream in it, whose name is `part`."""
    try:
        return tarfile.open(source, "r:") if source is path else tarfile.open(fileobj=source, mode="r:")
    except _DAMAGE as e:
        raise InputError(f"{part}{path} is no uncompressed tar archive ({first_line(e)})") from None


def _members(tar: tarfile.TarFile, path: pathlib.Path) -> list[tarfile.TarInfo]:
    try:
        found = [member for member in tar.getmembers() if member.isfile()]
        if found and tar.fileobj:
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(_BLOCK).strip(b"\0"):  # tarfile takes a damaged header for the end
                raise tarfile.ReadError(f"no header at byte {tar.offset:,}")
    except _DAMAGE as e:
        raise InputError(f"{path} is damaged or not complete ({first_line(e)})") from None
    if not found:
        raise InputError(f"{path} holds an archive without files")
    return found


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    try:
        stream = tar.extractfile(member)
        content = b"" if stream is None else stream.read()
    except _DAMAGE:
        content = b""
    if len(content) != member.size:
        raise InputError(f"{tar.name or 'an archive'} ends within {member.name}: it is not complete")
    return content
