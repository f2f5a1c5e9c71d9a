"""Files that are replaced whole or not at all."""

import pytest

from mobilenet_jax import files


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    (tmp_path / ".file.tmp").write_text("longer, of a process that was killed")
    files.write_atomically(path, "old")
    with pytest.raises(KeyboardInterrupt), files.replacing(path) as temporary:
        temporary.write_text("half")
        assert path.read_text() == "old"
        raise KeyboardInterrupt
    assert (list(tmp_path.iterdir()), path.read_text()) == ([path], "old")
    with files.replacing(path) as temporary:
        temporary.write_text("new")
    assert (list(tmp_path.iterdir()), path.read_text()) == ([path], "new")
