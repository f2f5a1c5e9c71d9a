"""MobileNet v1 on CIFAR-10.

    python launch.py --config configs/cifar_v1.py --config.model.alpha=0.25 --config.train.epochs=10

The recipe was chosen on
held-out training images at alpha = 0.25: batch norm's epsilon (1e-5 instead of TF-slim's 1e-3), small initial
kernels and a batch of 64 mattered most; a rate of 1.0, an adaptive RMSprop and smaller crops did not help.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    c = default.get_config()
    c.model.bn_epsilon = 1e-5
    c.optim.lr = 0.4
    c.optim.warmup_epochs = 0.5
    c.optim.weight_decay = 2e-4
    c.train.epochs = 30
    c.train.batch_size = 64
    return c
