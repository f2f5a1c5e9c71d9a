"""The data of the interactive figure."""

import json
import types

import pytest
from analysis_runs import COST, trained

from mobilenet_jax.analysis import points
from mobilenet_jax.analysis.configurations import find_series, group_runs
from mobilenet_jax.records.collect import read


def interactive(directory, **options):
    found = group_runs(read([directory])[0])
    return points.interactive(found, find_series(found), **options)


def test_runs_curves_and_lines(tmp_path):
    for alpha in (0.25, 0.5):
        trained(tmp_path, {"model.alpha": alpha}, (0.7, 0.72), mult_adds=COST[alpha])
    trained(tmp_path, {"model.version": "v2", "model.alpha": 1.0, "train.epochs": 1}, (0.8,), mult_adds=COST[1.0])
    found = json.loads(json.dumps(interactive(tmp_path)))
    ours = [point for point in found["points"] if point["layer"] == "runs"]
    assert [(p["version"], p["alpha"], p["expansion"]) for p in ours] == [
        *(("v1", 0.25, None), ("v1", 0.5, None), ("v2", 1.0, 6.0))
    ]
    first = ours[0]
    assert (first["top1"], first["sd"], first["epochs"]) == (71.0, 1.41, 3)
    assert "71.00 ± 1.41" in first["accuracy"] and "n = 2" in first["accuracy"]
    assert first["mult_adds"] == COST[0.25] / 1e6
    assert first["runs"].count(", ") == 1 and "-s0" in first["runs"]
    assert first["lines"]["alpha"] == ours[1]["lines"]["alpha"] and not ours[2]["lines"]
    (curve, other), _, single = found["curves"]
    assert curve == {"run": "seed 0", "epoch": [1, 2, 3], "test": [10, 20, 30], "train": [None] * 3}
    assert other["run"] == "seed 1" and single == []  # one epoch makes no curve
    assert [*found["costs"]] == ["mult_adds", "params"] and found["first"] == {"dataset": "cifar10", "epochs": 3}


def test_optimisers_are_filtered_apart(tmp_path):
    """Only where others have trained on the same set for as long."""
    trained(tmp_path, {}, (0.7,))
    trained(tmp_path, {"optim.name": "rmsprop", "optim.lr": 0.02}, (0.71,))
    trained(tmp_path, {"train.epochs": 5}, (0.7,))
    found = interactive(tmp_path)
    assert {point["epochs"] for point in found["points"] if point["layer"] == "runs"} == {"3, SGD", "3, RMSprop", 5}
    assert found["first"]["epochs"] in ("3, SGD", "3, RMSprop", 5)


def test_many_epochs_and_many_runs_are_thinned():
    rows = tuple({"epoch": float(i), "test_accuracy": i / 1000} for i in range(1, 951))
    run = types.SimpleNamespace(epochs=rows, summary=types.SimpleNamespace(seed=0))
    (curve,) = points.curves([run, types.SimpleNamespace(epochs=())])  # type: ignore[list-item]
    assert len(curve["epoch"]) <= 101 and curve["epoch"][0] == 1 and curve["epoch"][-1] == 950
    assert curve["test"][-1] == 95.0


def test_published_networks_of_the_data_set(tmp_path):
    trained(tmp_path, {"model.alpha": 1.0}, (0.9,), mult_adds=COST[1.0])
    trained(tmp_path, {"data.name": "imagenet2012", "model.alpha": 0.25}, (0.5,))
    trained(tmp_path, {"data.name": "mine", "model.alpha": 0.25}, (0.5,))
    found = [point for point in interactive(tmp_path)["points"] if point["layer"] == "published"]
    counts = {name: sum(point["dataset"] == name for point in found) for name in ("cifar10", "imagenet2012", "mine")}
    assert counts == {"cifar10": 12, "imagenet2012": 38, "mine": 0}
    (kuangliu,) = [p for p in found if p["dataset"] == "cifar10" and p["version"] == "v1" and p["epochs"] == "350"]
    assert kuangliu["mult_adds"] == COST[1.0] / 1e6 and kuangliu["top1"] == 92.35


def test_published_and_official_networks_of_a_set_with_a_version(tmp_path):
    data = {"data.name": "imagenet2012", "dataset.version": "5.1.0", "dataset.fingerprint": "1a2b3c4d"}
    trained(tmp_path, {"model.alpha": 0.25} | data, (0.5,))
    found = interactive(tmp_path, official=[points.published("imagenet2012")[0] | {"layer": "official"}])["points"]
    assert {point["dataset"] for point in found} == {"imagenet2012 (5.1.0, 1a2b3c4d)"}
    layers = [point["layer"] for point in found]
    assert [layers.count(name) for name in ("runs", "official", "published")] == [1, 1, 38]
    trained(tmp_path, {"model.alpha": 0.5} | data | {"dataset.fingerprint": "other"}, (0.6,))
    found = interactive(tmp_path, official=[points.published("imagenet2012")[0] | {"layer": "official"}])["points"]
    assert len({point["dataset"] for point in found if point["layer"] == "official"}) == 2


def test_measured_times_belong_to_networks(tmp_path):
    trained(tmp_path, {"data.name": "imagenet2012", "model.alpha": 0.25}, (0.5,))
    slim = next(p for p in points.published("imagenet2012") if (p["version"], p["alpha"]) == ("v1", 0.5))
    count = round(1e6 * slim["mult_adds"])
    timed = [
        types.SimpleNamespace(version="v1", alpha=0.5, mult_adds=count, batch=batch, measured=0.01) for batch in (1, 32)
    ]
    found = interactive(tmp_path, measured=timed)
    assert "ms" in found["costs"]
    (with_time,) = [p for p in found["points"] if "ms" in p]
    assert (with_time["name"], with_time["ms"], with_time["time"]) == (slim["name"], 10.0, "10 ms")


def test_official_networks(tmp_path):
    network = {"version": "v1", "alpha": 0.25, "num_classes": 1001, "resolution": 224, "top1": 0.5, "n": 1000}
    damaged = [{**network, "top1": 1.5}, {**network, "version": "v3"}, {"top1": 0.5}, 3]
    record = {"networks": {"a\nname": network} | {str(i): other for i, other in enumerate(damaged)}}
    (tmp_path / "ours.json").write_text(json.dumps(record))
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "damaged.json").write_text("{")
    (point,) = points.official_networks([tmp_path, tmp_path / "absent"])
    assert (point["layer"], point["dataset"], point["name"]) == ("official", "imagenet2012", "a name")
    assert (point["top1"], point["sd"]) == (50.0, pytest.approx(1.58)) and "1,000 images" in point["accuracy"]
    assert point["mult_adds"] == pytest.approx(41.03, abs=0.01)
    (tmp_path / "runs").mkdir()
    trained(tmp_path / "runs", {"model.alpha": 0.25}, (0.7,))
    layers = [p["layer"] for p in interactive(tmp_path / "runs", official=[point])["points"]]
    assert {name: layers.count(name) for name in layers} == {"runs": 1, "official": 1, "published": 12 + 38}
