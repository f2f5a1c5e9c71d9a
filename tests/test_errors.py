"""What a message takes of another library's exception."""

from mobilenet_jax.errors import first_line


def test_first_line():
    assert first_line(OSError("\n  no room \nleft")) == "no room"
    assert first_line(KeyError()) == "KeyError"
    assert first_line(ValueError("x" * 500)) == "x" * 200
