"""MobileNet v1, alpha = 0.25, on scikit-learn's digits. This is the default config and needs no download.

    python launch.py

Test accuracy: 0.986 (seed 0, 360 images). Time: about a minute on two cores.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    c = default.get_config()
    c.model.alpha = 0.25
    c.model.bn_decay = 0.9  # an epoch has 22 steps: at 0.99, the first ten epochs evaluate near chance
    c.model.bn_epsilon = 1e-5
    c.data.name = "digits"
    c.augment.pad = 2
    c.augment.flip = False  # a mirrored digit is a different symbol
    c.optim.lr = 0.4
    c.optim.warmup_epochs = 2.0
    c.train.epochs = 30
    c.train.batch_size = 64
    return c
