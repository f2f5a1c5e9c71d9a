"""The order of the vectors that a checkpoint holds."""

from mobilenet_jax.model.mobilenet import MobileNet
from mobilenet_jax.networks.arch import Architecture, Layer
from mobilenet_jax.training.checkpoint import FORMAT
from mobilenet_jax.training.state import Layout

LAYERS = (
    Layer("stem", "conv", 3, 4, 3, 2, "relu6"),
    Layer("block01_depthwise", "depthwise", 4, 4, 3, 1, "relu6"),
    Layer("pool", "pool", 4, 4),
    Layer("classifier", "dense", 4, 2),
)


def test_another_order_of_the_vectors_needs_another_format():
    """Where this fails, raise `FORMAT`: vectors of another order have the same shapes, and would be restored."""
    layout = Layout(MobileNet(Architecture("v1", LAYERS), bn_decay=0.9))
    kernels = ["classifier/kernel", "stem/kernel", "block01_depthwise/kernel"]
    others = [f"block01_depthwise/bn/{name}" for name in ("bias", "scale")]
    others += ["classifier/bias", "stem/bn/bias", "stem/bn/scale"]
    statistics = [f"{layer}/bn/{name}" for layer in ("block01_depthwise", "stem") for name in ("mean", "var")]
    assert FORMAT == "4"
    assert {key: [*shapes] for key, shapes in layout.shapes.items()} == {
        "params": kernels + others,
        "batch_stats": statistics,
    }
