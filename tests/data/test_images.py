"""Streamed pictures: what is decoded, what is cut out, in which order, and what happens to those that are damaged."""

import io
import json
import pathlib

import cv2
import numpy as np
import pytest
from picture_sets import picture, write
from PIL import Image

from mobilenet_jax.data import arrays, crops, decoding, images, views
from mobilenet_jax.data.datasets import describe
from mobilenet_jax.errors import InputError

WHOLE = crops.Crop(side=16, scale=0.0, ratio=4 / 3, resize=0, flip=False, protocol="slim")
INCEPTION = crops.Crop(side=16, scale=0.08, ratio=4 / 3, resize=0, flip=True, protocol="slim")


def saved(image: Image.Image, kind: str, **options) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def by_pillow(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


# Decoding.


@pytest.mark.parametrize(
    ("kind", "mode"), [("JPEG", "RGB"), ("JPEG", "L"), ("PNG", "RGB"), ("PNG", "L"), ("WEBP", "RGB")]
)
def test_decoded_pictures_equal_those_of_pillow(kind, mode):
    content = picture(1, kind=kind, mode=mode)
    found = decoding.decode(content)
    assert (found.shape, found.dtype) == ((40, 52, 3), np.uint8)
    np.testing.assert_array_equal(found, by_pillow(content))


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpegs_are_the_same_without_the_extra(mode, monkeypatch):
    content = picture(1, mode=mode)
    found = decoding.decode(content)
    monkeypatch.setattr(decoding, "_TURBO", False)
    np.testing.assert_array_equal(decoding.decode(content), found)


def test_other_formats_are_not_tried():
    with pytest.raises(decoding.DecodingError, match="no picture"):
        decoding.decode(saved(Image.new("RGB", (4, 4)), "EPS"))


def test_cmyk_is_converted():
    content = picture(1, mode="CMYK")
    difference = decoding.decode(content).astype(int) - by_pillow(content)
    assert np.abs(difference).max() <= 1  # of 255, by rounding


def test_16_bits_keep_their_higher_byte():
    pixels = np.arange(0, 40 * 52 * 30, 30, dtype=np.uint16).reshape(40, 52)
    found = decoding.decode(saved(Image.fromarray(pixels), "PNG"))
    np.testing.assert_array_equal(found, np.repeat((pixels >> 8)[..., None], 3, axis=-1))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_ignored(mode):
    image = Image.open(io.BytesIO(picture(1, kind="PNG")))
    transparent = image.convert(mode)
    options = {"transparency": bytes(range(200))} if mode == "P" else {}
    found = decoding.decode(saved(transparent, "PNG", **options))
    expected = np.asarray((image.convert("L") if mode == "LA" else transparent).convert("RGB"))
    np.testing.assert_array_equal(found, expected)


def test_an_orientation_is_ignored_as_both_protocols_do():
    image = Image.open(io.BytesIO(picture(1)))
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decoding.decode(saved(image, "JPEG", exif=exif)).shape == (40, 52, 3)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no picture",
        picture(1)[:400],
        picture(1)[:-30],
        picture(1, kind="PNG")[:500],
        picture(1, kind="WEBP")[:60],
        b"\xff\xd8" + b"\0" * 100,
    ],
)
def test_damaged_files_are_undecodable(content):
    with pytest.raises(decoding.DecodingError):
        decoding.decode(content)


def test_a_picture_that_claims_to_be_huge_is_undecodable(monkeypatch):
    monkeypatch.setattr(decoding, "_PIXELS", 40 * 52 - 1)
    for kind in ("JPEG", "PNG"):
        with pytest.raises(decoding.DecodingError, match="pixels"):
            decoding.decode(picture(1, kind=kind))


# Crops.


def test_inception_boxes_have_the_areas_and_ratios_asked_for():
    rng = np.random.default_rng(0)
    boxes = np.array([crops.inception_box(375, 500, 0.08, 4 / 3, rng) for _ in range(2000)])
    top, left, height, width = boxes.T
    assert (top >= 0).all() and (left >= 0).all() and (top + height <= 375).all() and (left + width <= 500).all()
    areas, ratios = height * width / (375 * 500), width / height
    assert areas.min() < 0.1 and areas.max() > 0.95 and areas.min() > 0.079
    assert 0.74 < ratios.min() < 0.78 and 1.28 < ratios.max() < 1.35
    assert 0.38 < areas.mean() < 0.50  # uniform from 0.08 to 1, less what does not fit
    assert 0.48 < (ratios > 1).mean() < 0.62  # wide boxes fit more often
    # Of 1000 x 10 pixels, no box of this ratio has 8 % of the area.
    assert crops.inception_box(10, 1000, 0.08, 4 / 3, rng) == (0, 493, 10, 13)


def test_a_crop_is_a_resized_part():
    image = decoding.decode(picture(5, 80, 100))
    found = crops.Crop(32, 0.3, 1.5, 0, False, "slim")(image, np.random.default_rng(3))
    top, left, height, width = crops.inception_box(80, 100, 0.3, 1.5, np.random.default_rng(3))
    expected = cv2.resize(image[top : top + height, left : left + width], (32, 32), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(found, expected)


def test_a_crop_of_a_fixed_resize_has_one_scale():
    ramp = np.broadcast_to(np.arange(100, dtype=np.uint8)[None, :, None], (80, 100, 3))
    crop = crops.Crop(16, 0.0, 1.5, 20, False, "slim")  # 64 of 80 pixels to 16: four pixels become one
    found = np.array([crop(ramp, np.random.default_rng(i)) for i in range(50)])
    steps = np.diff(found[..., 0].astype(int), axis=2)
    assert (steps == 4).all()
    starts = found[:, 0, 0, 0]
    assert starts.min() < 5 and starts.max() > 32


def test_half_of_the_pictures_are_mirrored():
    image = decoding.decode(picture(5))
    plain = WHOLE(image, np.random.default_rng(0))
    flipping = crops.Crop(16, 0.0, 1.5, 0, True, "slim")
    found = [flipping(image, np.random.default_rng(i)) for i in range(200)]
    mirrored = sum(np.array_equal(each, plain[:, ::-1]) for each in found)
    assert sum(np.array_equal(each, plain) for each in found) == 200 - mirrored
    assert 70 < mirrored < 130


@pytest.mark.parametrize("protocol", views.PROTOCOLS)
def test_without_augmentation_a_crop_is_the_evaluation_view(protocol):
    image = decoding.decode(picture(5, 60, 70))
    crop = crops.Crop(16, 0.0, 1.5, 0, False, protocol)
    np.testing.assert_array_equal(crop(image, np.random.default_rng(0)), views.PROTOCOLS[protocol](image, 16))


# Streams.

COUNTS = {"train/a": 11, "train/b": 12, "val/a": 3, "val/b": 4}


@pytest.fixture
def splits(tmp_path: pathlib.Path):
    write(tmp_path, COUNTS)
    return images.load(describe("folder", str(tmp_path)), str(tmp_path))


@pytest.fixture
def loader():
    loader = images.Loader(3)
    yield loader
    loader.close()


def train(loader, splits, steps, crop=INCEPTION, seed=7):
    return list(loader.training(splits["train"], crop, seed, steps, steps_per_epoch=5, batch_size=4))


def test_batches_follow_the_order_of_their_epoch(splits, loader):
    found = train(loader, splits, range(10), WHOLE)
    for epoch in (0, 1):
        order = arrays.epoch_order(23, 7, epoch)[:20]
        labels = np.concatenate([batch.labels for batch in found[5 * epoch : 5 * epoch + 5]])
        np.testing.assert_array_equal(labels, order >= 11)
        pixels = np.concatenate([batch.images for batch in found[5 * epoch : 5 * epoch + 5]])
        expected = [views.slim(splits["train"].decoded(position)[0], 16) for position in order]
        np.testing.assert_array_equal(pixels, expected)
    assert all(batch.mask.all() for batch in found)


def test_a_stream_starts_anywhere_without_what_was_before(splits, loader):
    whole = train(loader, splits, range(15))
    for first in (1, 5, 8):
        for ours, theirs in zip(train(loader, splits, range(first, 15)), whole[first:], strict=True):
            assert all(map(np.array_equal, ours, theirs))
    other = images.Loader(1)
    assert all(np.array_equal(a.images, b.images) for a, b in zip(train(other, splits, range(15)), whole, strict=True))
    other.close()
    assert not np.array_equal(train(loader, splits, range(1), seed=8)[0].images, whole[0].images)


def test_a_picture_is_cut_differently_in_each_epoch(splits, loader):
    found = [train(loader, splits, range(5 * epoch, 5 * epoch + 5)) for epoch in (0, 1)]
    first, second = (np.concatenate([batch.images for batch in batches]) for batches in found)
    at = [{int(i): n for n, i in enumerate(arrays.epoch_order(23, 7, epoch)[:20])} for epoch in (0, 1)]
    shared = at[0].keys() & at[1].keys()
    assert len(shared) > 10
    assert not any(np.array_equal(first[at[0][i]], second[at[1][i]]) for i in shared)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 10])
def test_an_evaluation_sees_each_picture_once(splits, loader, batch_size):
    batches = list(loader.evaluation(splits["test"], "torch", 16, batch_size))
    assert {batch.images.shape for batch in batches} == {(batch_size, 16, 16, 3)}
    masks = np.concatenate([batch.mask for batch in batches]) == 1
    assert masks.sum() == 7
    pixels = np.concatenate([batch.images for batch in batches])[masks]
    expected = [views.torch(splits["test"].decoded(i)[0], 16) for i in range(7)]
    np.testing.assert_array_equal(pixels, expected)
    np.testing.assert_array_equal(np.concatenate([batch.labels for batch in batches])[masks], [0] * 3 + [1] * 4)


def test_few_batches_are_made_ahead(splits, loader):
    read = []
    slow = images.Pictures(
        lambda i: (read.append(i), splits["train"].read(i))[1], np.arange(23), splits["train"].undecodable
    )
    stream = loader.training(slow, WHOLE, 0, range(10_000), 5, 4)
    for _ in range(10):
        next(stream)
    while not stream.ready(1):
        pass
    assert 40 < len(read) <= 40 + 10 * 4


def test_held_out_pictures_are_those_of_a_set_in_memory(splits):
    rest, held_out = images.holdout(splits["train"], 0.3)
    expected = arrays.holdout_indices(23, 0.3)
    np.testing.assert_array_equal(rest.indices, expected[0])
    np.testing.assert_array_equal(held_out.indices, expected[1])
    assert [held_out.read(int(i)).label for i in held_out.indices] == [int(i >= 11) for i in expected[1]]


# Damaged pictures.


@pytest.fixture
def many(tmp_path: pathlib.Path):
    """Pictures enough for one that cannot be decoded."""
    content = [picture(i) for i in range(4)]
    for folder, count in {"train/a": 500, "train/b": 500, "val/a": 1500}.items():
        (tmp_path / folder).mkdir(parents=True)
        for i in range(count):
            (tmp_path / folder / f"{i:04}.jpg").write_bytes(content[i % 4])
    return tmp_path


def opened(root):
    return images.load(describe("folder", str(root)), str(root))


def test_an_undecodable_picture_is_replaced_by_the_next_and_named_once(many, loader, capfd):
    order = arrays.epoch_order(1000, 7, 0)
    bad = many / "train" / "ab"[int(order[2] >= 500)] / f"{order[2] % 500:04}.jpg"
    whole = train(loader, opened(many), range(1), WHOLE)[0]
    bad.write_bytes(bad.read_bytes()[:300])
    splits = opened(many)
    found = [train(loader, splits, range(1), WHOLE)[0] for _ in range(2)]
    np.testing.assert_array_equal(found[0].images, whole.images[[0, 1, 3, 3]])
    np.testing.assert_array_equal(found[0].labels, whole.labels[[0, 1, 3, 3]])
    assert splits["train"].undecodable.names == {str(bad)}
    assert capfd.readouterr().err.count(str(bad)) == 1


def test_an_undecodable_picture_is_left_out_of_an_evaluation(many, loader):
    (many / "val" / "a" / "0003.jpg").write_bytes(b"")
    splits = opened(many)
    masks = [batch.mask for batch in loader.evaluation(splits["test"], "slim", 16, 400)]
    assert [int(mask.sum()) for mask in masks] == [399, 400, 400, 300]
    assert masks[0][3] == 0
    assert len(splits["test"].undecodable.names) == 1


def test_more_than_one_in_a_thousand_stops_the_run(many, loader):
    for name in ("0003", "0004"):
        (many / "val" / "a" / f"{name}.jpg").write_bytes(b"")
    with pytest.raises(InputError) as e:
        list(loader.evaluation(opened(many)["test"], "slim", 16, 400))
    assert all(words in str(e.value) for words in ("number 2 of the val split", "at most 1", "0.1 %", "it is empty"))


def test_a_picture_that_vanishes_stops_the_run(many, loader):
    splits = opened(many)
    (many / "val" / "a" / "0003.jpg").unlink()
    with pytest.raises(InputError, match=r"0003\.jpg cannot be read"):
        list(loader.evaluation(splits["test"], "slim", 16, 400))


def test_an_evaluation_needs_no_package_of_the_training(many, loader, monkeypatch):
    monkeypatch.setattr(crops.importlib.util, "find_spec", lambda name: None)
    assert next(loader.evaluation(opened(many)["test"], "slim", 16, 4)).mask.sum() == 4


def test_absent_imagenet_is_refused(tmp_path: pathlib.Path):
    with pytest.raises(InputError, match="imagenet2012"):
        images.load(describe("imagenet2012", str(tmp_path)), str(tmp_path))


def test_a_set_that_has_changed_is_refused(many):
    dataset = describe("folder", str(many))
    (many / "val" / "a" / "0003.jpg").unlink()
    with pytest.raises(InputError, match="has changed"):
        images.load(dataset, str(many))


def test_records_say_which_set_they_are_of(many):
    dataset = describe("folder", str(many))
    assert json.loads(json.dumps(vars(dataset)))["class_names"] == ["a", "b"]
