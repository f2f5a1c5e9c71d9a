"""The page of published costs: what each section has, the released networks, and a wrong layer list."""

import dataclasses

import pytest

from mobilenet_jax.analysis import published
from mobilenet_jax.networks import arch


def test_sections():
    released, differs, papers, documents, phone = published.sections()
    assert [p.name for p in released.pictures] == [
        *("accuracy_mult_adds", "accuracy_params", "mult_adds_by_kind", "activation_memory")
    ]
    assert len(differs.tables[0].rows) == 49 and differs.tables[0].note.startswith("769 cells")
    assert [len(s.tables) for s in (papers, documents, phone)] == [14, 4, 1]


def test_the_released_networks():
    (table,) = published.released().tables
    assert len(table.rows) == 38
    assert table.rows[0] == ("v2 0.35", "96", "45.5", "11.93", "1.68", "yes")
    assert [row[0] for row in table.rows if row[-1] and row[0].startswith("v1")] == []  # v2 beats v1 at every cost
    assert "5.7 points of top-1 among the 16 v1 networks and 5.1 points of top-1 among the 22 v2" in table.note


def test_a_difference_that_nothing_explains_is_refused(monkeypatch):
    build = arch.mobilenet_v2

    def wider(*args, **kwargs) -> arch.Architecture:
        network = build(*args, **kwargs)
        layers = (dataclasses.replace(network.layers[0], kernel=5), *network.layers[1:])
        return dataclasses.replace(network, layers=layers)

    monkeypatch.setitem(arch.VERSIONS, "v2", wider)
    with pytest.raises(RuntimeError, match="slim_v2, 1.4 224, mult-adds, M"):
        published.sections()
