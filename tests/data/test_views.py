"""The evaluation protocols, against TensorFlow's and torchvision's, recorded by `transfer/make_references.py`."""

import io

import numpy as np
import pytest
from PIL import Image
from transfer_helpers import DATA, images

from mobilenet_jax.data import decoding, views
from mobilenet_jax.errors import InputError

SIZES = ((30, 20), (33, 47), (64, 64), (9, 50))  # those of make_references.py


@pytest.mark.parametrize("number", range(len(SIZES)))
def test_slim_is_that_of_tensorflow(number):
    height, width = SIZES[number]
    image, expected = images(1, 64)[0, :height, :width], np.load(DATA / "slim_views.npz")[str(number)]
    np.testing.assert_allclose(views.slim_unrounded(image, 16), expected, atol=0.01)
    found = views.slim(image, 16)
    assert found.dtype == np.uint8
    np.testing.assert_allclose(found, expected, atol=0.51)


@pytest.mark.parametrize("number", range(len(SIZES)))
def test_torch_is_that_of_torchvision(number):
    height, width = SIZES[number]
    found = views.torch(images(1, 64)[0, :height, :width], 16)
    np.testing.assert_array_equal(found, np.load(DATA / "torch_views.npz")[str(number)])


def test_slim_by_hand():
    """16 rows and columns lose one at each end; 14 of them become 7: every second one, without half-pixel centres."""
    ramp = np.arange(16, dtype=np.uint8)[:, None, None] + 16 * np.arange(16, dtype=np.uint8)[None, :, None]
    found = views.slim(ramp.repeat(3, 2), 7)
    np.testing.assert_array_equal(found[..., 0], ramp[1:15:2, 1:15:2, 0])


def test_the_protocols_differ():
    image = images(1, 60)[0, :40]
    assert not np.array_equal(views.slim(image, 32), views.torch(image, 32))


def saved(path, mode="RGB", form="PNG"):
    Image.fromarray(images(1, 24)[0]).convert(mode).save(path, form)
    return path


@pytest.mark.parametrize("kind", ["RGB PNG", "L JPEG", "CMYK JPEG", "P PNG", "RGBA PNG"])
def test_every_kind_of_picture_is_rgb(kind, tmp_path):
    found = views.read(saved(tmp_path / "x.JPEG", *kind.split()), "torch", 16)
    assert (found.shape, found.dtype) == ((16, 16, 3), np.uint8)


def test_16_bits_keep_their_higher_byte(tmp_path):
    pixels = (images(1, 24)[0, ..., 0].astype(np.uint16) << 8) + 7
    Image.fromarray(pixels).save(tmp_path / "x.png")
    np.testing.assert_array_equal(decoding.read(tmp_path / "x.png")[..., 0], pixels >> 8)


@pytest.mark.parametrize("content", [b"", b"text", "half", None])
def test_files_that_are_no_picture(content, tmp_path):
    path = tmp_path / "x.jpeg"
    if content == "half":
        content = saved(tmp_path / "y.jpeg", form="JPEG").read_bytes()[:300]
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"x\.jpeg: "):
        decoding.read(path)


def test_a_picture_that_claims_to_be_huge(tmp_path):
    packed = io.BytesIO()
    Image.new("RGB", (1, 1)).save(packed, "BMP")
    content = bytearray(packed.getvalue())
    content[18:26] = (20_000).to_bytes(4, "little") * 2  # width and height
    (tmp_path / "x.bmp").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.bmp: .* pixels"):
        decoding.read(tmp_path / "x.bmp")


def test_a_picture_that_is_too_long(tmp_path):
    """The shorter side would be enlarged to the resolution, and the longer one with it."""
    Image.new("RGB", (2000, 10)).save(tmp_path / "x.png")
    with pytest.raises(InputError, match=r"x\.png: .*2000x10"):
        decoding.read(tmp_path / "x.png")


def test_a_program_is_no_picture(tmp_path):
    """PostScript is a language: Pillow would start its interpreter."""
    Image.new("RGB", (8, 8)).save(tmp_path / "x.jpg", "EPS")
    with pytest.raises(InputError, match=r"x\.jpg: "):
        decoding.read(tmp_path / "x.jpg")


def test_transparent_palettes(tmp_path):
    Image.new("P", (16, 16)).save(tmp_path / "x.png", transparency=b"\x80" * 256)
    assert decoding.read(tmp_path / "x.png").shape == (16, 16, 3)
