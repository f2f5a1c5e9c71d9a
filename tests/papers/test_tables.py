"""Every printed cost of the papers, TF-slim and the documents: equal within its rounding, or a known misprint."""

import dataclasses
import itertools
from collections.abc import Callable
from decimal import Decimal, InvalidOperation

import pytest

from mobilenet_jax.networks import arch, cost
from mobilenet_jax.networks.arch import Architecture
from mobilenet_jax.papers import cifar28 as documents
from mobilenet_jax.papers import compare as claims
from mobilenet_jax.papers import printed as published
from mobilenet_jax.papers import tables as papers

# Cells that are set beside ours, by table. Rows x columns, less what is not ours to count.
CELLS = {
    "v1_table1": 30 * 4,
    "v1_table2": 4 * 2,
    "v1_table3": 4 * 2,
    "v1_table4": 2 * 2,
    "v1_table5": 2 * 2,
    "v1_table6": 4 * 2,
    "v1_table7": 4 * 2,
    "v1_table8": 1 * 2,
    "v1_table9": 1 * 2,
    "slim_v1": 16 * 2,
    "v2_table2": 11 * 6,
    "v2_table3": 6 * 4 + 2 * 2,
    "v2_table4": 3 * 2,
    "slim_v2": 22 * 2,
    "documents": 53,
    "document_000": 30 * 4,
    "seed004_table1": 30 * 4,
    "seed004_table3": 27 * 4,
    "seed004_table4": 27 * 3 + 1,
}
FILES = {
    **{"slim_v1": 16, "slim_v2": 22, "paper_v1": 26, "paper_v2": 6, "layers": 90, "v2_stages": 11, "v2_memory": 8},
    **{"documents": 53, "seed004_times": 28},
}


def printed() -> list[claims.Printed]:
    return [*papers.tables(), *documents.tables()]


def test_every_cell_agrees_or_is_a_known_misprint():
    assert claims.unexplained(printed()) == []


def test_no_cell_is_left_out():
    assert {t.name: sum(cell.ours != "" or cell.printed == "" for _, cell in t.cells()) for t in printed()} == CELLS
    assert {name: len(published.rows(name)) for name in FILES} == FILES


def test_others_networks_are_not_ours_to_count():
    theirs = {
        label for t in printed() for label, cell in t.cells() if cell.column == papers.MULT_ADDS and not cell.ours
    }
    assert theirs == {
        *("GoogleNet", "VGG 16", "Squeezenet", "AlexNet", "ShuffleNet (1.5)", "ShuffleNet (x2)", "NasNet-A")
    }


def test_misprints_are_listed_once_and_explained():
    rows = [(row["table"], row["row"], row["column"]) for row in published.rows("misprints")]
    assert len(set(rows)) == len(rows)
    assert all(row["note"] for row in published.rows("misprints"))


def test_published_tables_are_complete():
    def points(name):
        return {(float(row["alpha"]), int(row["resolution"])) for row in published.rows(name)}

    assert points("slim_v1") == set(itertools.product((1, 0.75, 0.5, 0.25), (224, 192, 160, 128)))
    assert points("slim_v2") == {
        (1.4, 224),
        (1.3, 224),
        *itertools.product((1, 0.75, 0.5, 0.35), (224, 192, 160, 128, 96)),
    }
    for name, sizes in {"paper_v1": {2: 4, 3: 4, 4: 2, 5: 2, 6: 4, 7: 4, 8: 3, 9: 3}, "paper_v2": {4: 6}}.items():
        tables = [int(row["table"]) for row in published.rows(name)]
        assert {table: tables.count(table) for table in tables} == sizes


@pytest.mark.parametrize("name", ["slim_v1", "slim_v2", "paper_v1", "paper_v2", "v2_memory"])
def test_published_cells_are_printed_numbers(name):
    for row in published.rows(name):
        for column in row.keys() - {"row", "variant", "version", "table"}:
            try:
                assert row[column] == "" or Decimal(row[column]) > 0, row
            except InvalidOperation:
                pytest.fail(f"{column} of {row}")


# A change of a layer. A cell that is misprinted may change without being noticed: its note still holds.

Change = Callable[[Architecture], Architecture]


def edit(**changes: dict[str, int]) -> Change:
    """A change of some layers, by name."""
    return lambda network: dataclasses.replace(
        network, layers=tuple(dataclasses.replace(x, **changes.get(x.name, {})) for x in network.layers)
    )


def without_block13(network: Architecture) -> Architecture:
    return dataclasses.replace(network, layers=tuple(x for x in network.layers if not x.name.startswith("block13")))


def tables_that_notice(monkeypatch, version: str, change: Change) -> set[str]:
    """The tables with a cell that nothing explains, once every network of a version is changed."""
    build = getattr(arch, f"mobilenet_{version}")
    monkeypatch.setattr(arch, f"mobilenet_{version}", lambda *args, **kwargs: change(build(*args, **kwargs)))
    return {entry.partition(",")[0] for entry in claims.unexplained(printed())}


WIDER = edit(block06_pointwise={"out_channels": 520}, block07_depthwise={"out_channels": 520, "in_channels": 520})
V1_WHOLE = {*(f"v1_table{n}" for n in (2, 4, 5, 6, 7, 8, 9)), "slim_v1", "v2_table4"}


@pytest.mark.parametrize(
    ("version", "change", "tables"),
    [
        ("v1", WIDER, {"v1_table1", "document_000"}),
        ("v1", edit(block13_depthwise={"stride": 2}), {"v1_table1", "v1_table7"}),  # as the paper's Table 1 prints it
        ("v1", edit(stem={"kernel": 5}), V1_WHOLE - {"v1_table5", "v2_table4"}),
        ("v1", without_block13, V1_WHOLE | {"v1_table1", "documents"}),
        ("v1", edit(block12_depthwise={"stride": 1}), {"seed004_table1", "seed004_table3", "seed004_table4"}),
        ("v1", edit(block03_pointwise={"out_channels": 136}), {"seed004_table1", "seed004_table3", "seed004_table4"}),
        ("v2", edit(block01_project={"out_channels": 24}), {"v2_table2", "v2_table3"}),
        ("v2", edit(block11_depthwise={"stride": 2}), {"v2_table2", "v2_table3", "v2_table4", "slim_v2"}),
        ("v2", edit(head={"out_channels": 1024}, pool={"out_channels": 1024}), {"v2_table2", "v2_table3"}),
        ("v2", without_block13, {"v2_table2", "v2_table4", "slim_v2", "documents"}),
    ],
)
def test_a_wrong_layer_is_noticed(monkeypatch, version, change, tables):
    assert tables <= tables_that_notice(monkeypatch, version, change)


def test_a_wrong_count_is_noticed_everywhere(monkeypatch):
    """Depthwise kernels counted as full ones: no table that counts stays as it is."""
    weights = cost._kernel_weights
    monkeypatch.setattr(
        cost,
        "_kernel_weights",
        lambda layer: weights(layer) * (layer.in_channels if layer.kind == "depthwise" else 1),
    )
    found = {entry.partition(",")[0] for entry in claims.unexplained(printed())}
    words = {"v1_table1", "v2_table2", "v2_table3", "document_000", "seed004_table1"}
    assert found >= CELLS.keys() - words
