"""MobileNet v2 on CIFAR-10 (stem 1; stages 1, 1, 2, 2, 1, 2, 1).

    python launch.py --config configs/cifar_v2.py --config.model.alpha=0.35 --config.train.epochs=3

The recipe is that of `cifar_v1`; it was not tried against others for v2.
"""

from ml_collections import ConfigDict

from configs import cifar_v1


def get_config() -> ConfigDict:
    c = cifar_v1.get_config()
    c.model.version = "v2"
    return c
