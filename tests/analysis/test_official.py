"""The page of official networks: accuracies, slopes and ranks by hand, and records that hold something else."""

import json
import sys
from typing import Any

import numpy as np
import pytest

from mobilenet_jax import report
from mobilenet_jax.analysis import official
from mobilenet_jax.papers import printed

IMAGES = 200


def records(slope: float = 0.05) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return records of the v1 and v2 networks, whose top-1 is 0.5 plus `slope` per doubling of the mult-adds."""
    from mobilenet_jax.networks import arch, cost

    ours, runtime = {}, {}
    for version, alphas in {"v1": (0.25, 0.5, 0.75), "v2": (0.5, 0.75, 1.0)}.items():
        for alpha in alphas:
            for resolution in (128, 160, 192, 224):
                mult_adds = cost.totals(arch.mobilenet(version, alpha, num_classes=1001), resolution).mult_adds
                right = round(IMAGES * (0.5 + slope * np.log2(mult_adds / 5e7)))
                bits = int("1" * right + "0" * (IMAGES - right), 2)
                row = {"version": version, "alpha": alpha, "num_classes": 1001, "resolution": resolution}
                row |= {"top1": right / IMAGES, "top5": 0.9, "n": IMAGES, "classes": [1] * IMAGES, "right": f"{bits:x}"}
                name = f"{version}_{alpha}_{resolution}_quant"
                ours[name] = row
                runtime[name] = {"top1": right / IMAGES - 0.02, "classes": [1] * 150 + [2] * 50}
    return {"networks": ours}, {"networks": runtime}


def table(name: str, *given: Any) -> Any:
    (section,) = official.sections(*given)
    return next(each for each in section.tables if each.name == name)


def test_networks_are_read():
    networks = official.read(*records())
    assert [each.mult_adds for each in networks] == sorted(each.mult_adds for each in networks)
    for each in networks:
        assert each.right.shape == (IMAGES,) and each.right.mean() == records()[0]["networks"][each.name]["top1"]
        (line,) = [
            row
            for row in printed.rows(f"slim_{each.version}")
            if (float(row["alpha"]), int(row["resolution"])) == (each.alpha, each.resolution)
        ]
        assert each.published == float(line["top1"]) and each.same == 0.75


def test_slopes_by_hand():
    """All networks lie on one line, up to half an image."""
    for row in table("halvings", *records(slope=0.05)).rows:
        value, _, interval = row[2].partition(" ")
        low, high = map(float, interval.strip("[]").split(", "))
        assert float(value) == pytest.approx(5, abs=0.35) and low < float(value) < high


def test_the_published_slope_is_that_of_the_printed_table():
    """By hand along alpha, from the lines of slim_v1.csv: 6.6 to 6.9 points per doubling at each resolution."""
    rows = {(row[0], row[1][:5]): row[3] for row in table("halvings", *records()).rows}
    assert float(rows["v1", "width"]) == pytest.approx(6.7, abs=0.2)


def test_limits_are_counted():
    ours, runtime = records()
    assert table("runtime", ours, runtime).note.startswith("0 of 24 networks")
    for name, row in runtime["networks"].items():
        row |= {"top1": ours["networks"][name]["top1"] - 0.01, "classes": [1] * 180 + [2] * 20}
    assert table("runtime", ours, runtime).note.startswith("24 of 24 networks")


def test_ranks():
    assert "is 1.000 over 24" not in official.sections(*records())[0].text[1]
    ours, runtime = records()
    for name, row in ours["networks"].items():
        published = next(each.published for each in official.read(ours, runtime) if each.name == name)
        right = round(IMAGES * (published or 0) / 100)
        row["right"] = f"{int('1' * right + '0' * (IMAGES - right), 2):x}"
    found = float(official.sections(ours, runtime)[0].text[1].split(" is ")[1].split()[0])
    assert found > 0.99  # up to ties of half an image


@pytest.mark.parametrize(
    "content", [None, "{", "[]", "{}", '{"networks": 1}', '{"networks": {}}', '{"networks": {"x": {}}}']
)
def test_other_records(content, tmp_path, monkeypatch, capsys):
    if content is not None:
        (tmp_path / "ours.json").write_text(content)
        (tmp_path / "litert.json").write_text(json.dumps(records()[1]))
    monkeypatch.setattr(sys, "argv", ["report", f"--official={tmp_path}"])
    assert report.main() == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"error: --official={tmp_path}: ") and err.count("\n") == 1
