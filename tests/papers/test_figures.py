"""The points of the figures of published networks, before anything is drawn."""

import pytest

from mobilenet_jax.papers import figures


def test_the_38_checkpoints():
    points = {(p.version, p.alpha, p.resolution): p for p in figures.checkpoints("mult_adds")}
    assert len(points) == 38
    assert (points["v2", 1.0, 224].cost, points["v2", 1.0, 224].top1) == (300.774272, 71.8)
    assert (points["v1", 0.25, 128].cost, points["v1", 0.25, 128].top1) == (pytest.approx(13.57, abs=0.01), 41.5)
    params = {(p.version, p.alpha, p.resolution): p.cost for p in figures.checkpoints("params")}
    assert (params["v1", 1.0, 224], params["v2", 1.0, 96]) == (4.231976, 3.504872)


def test_mult_adds_by_kind():
    shares = figures.mult_adds_by_kind()
    assert len(shares) == 10
    v1, v2 = shares["v1, alpha 1"], shares["v2, alpha 1"]
    assert (sum(v1.values()), sum(v2.values())) == (568_740_352, 300_774_272)
    assert v1.keys() == {"conv", "depthwise", "pointwise", "pool", "dense"}
    assert v2.keys() == {"conv", "depthwise", "expand", "project", "head", "pool", "dense"}
    assert (v1["dense"], v2["head"]) == (1_024_000, 7 * 7 * 320 * 1280)


def test_activation_memory():
    (v1,), (v2, bottlenecks) = figures.activation_memory().values()
    assert (max(v1), max(v2), max(bottlenecks)) == pytest.approx((2408.448, 3010.56, 1204.224))
