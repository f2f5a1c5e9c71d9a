"""Two runs compared."""

import json

from helpers import ENV, put

from mobilenet_jax.analysis.compare_runs import compare
from mobilenet_jax.records.collect import read


def test_everything_that_differs_is_listed(tmp_path):
    put(tmp_path / "a", {"data.dir": ""}, val_accuracy=0.5)
    put(tmp_path / "b", {"data.dir": "/data", "seed": 1, "augment.flip": False}, test_accuracy=0.8, params=215_643)
    env = {"git_commit": "4567", "device": "cpu", "packages": {"jax": "0.11.0", "flax": "0.12"}, "earlier": [ENV]}
    env |= {"settings": {"XLA_FLAGS": "--xla"}, "matmul_precision": "highest", "driver": "580.65.06"}
    (tmp_path / "b" / "env.json").write_text(json.dumps(env))
    made = compare(*read([tmp_path])[0])
    assert (made.title, made.header) == ("a and b", ("", "a", "b", "difference"))
    assert made.rows == (
        ("test top-1, %", "79.14", "80.00", "+0.86"),
        ("train top-1, %", "80.00", "80.00", "+0.00"),
        ("params", "215642", "215643", ""),
        ("config.augment.flip", "True", "False", ""),
        ("config.data.dir", "''", "/data", ""),
        ("config.seed", "0", "1", ""),
        ("env.driver", "absent", "580.65.06", ""),
        ("env.git_commit", "0123", "4567", ""),
        ("env.matmul_precision", "absent", "highest", ""),
        ("env.packages.jax", "0.10.2", "0.11.0", ""),
        ("env.python", "3.11.7", "absent", ""),
        ("env.settings.XLA_FLAGS", "absent", "--xla", ""),
    )
    assert "Not compared" not in made.note and "the same in both" not in made.note


def test_a_lost_file_is_named(tmp_path):
    put(tmp_path / "x" / "run")
    other = put(tmp_path / "y" / "run", {"seed": 1}, device="NVIDIA H200")
    for name in ("config.json", "env.json"):
        (other / name).unlink()
    made = compare(*read([tmp_path])[0])
    assert made.header == ("", str(tmp_path / "x" / "run"), str(tmp_path / "y" / "run"), "difference")
    assert [row[0] for row in made.rows] == ["test top-1, %", "train top-1, %", "device"]
    assert "config.json" in made.note and "env.json" in made.note and "the same in both" in made.note
