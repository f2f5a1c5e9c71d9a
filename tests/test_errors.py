"""The message for the user: one line, and what it takes of another library's exception."""

from mobilenet_jax.errors import InputError, first_line


def test_a_message_is_one_line():
    assert str(InputError("config.a\nb\x1b[2J\u2028\udcff: α × 2")) == r"config.a\nb\x1b[2J\u2028\udcff: α × 2"
    assert str(InputError()) == ""


def test_first_line():
    assert first_line(OSError("\n  no room \nleft")) == "no room"
    assert first_line(KeyError()) == "KeyError"
    assert first_line(ValueError("x" * 500)) == "x" * 200
