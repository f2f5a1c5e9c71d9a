"""A 28x28 CIFAR-10 network of 27 convolutions. It trains on random 28x28 crops of the 32x32 images, with flips.

    python launch.py --config configs/cifar28.py
    python launch.py --config configs/cifar28.py --config.model.alpha=0.75

The network is that of a course report ("MobileNet" on CIFAR-10, RMSprop, 60 epochs). Test accuracy (loss), one seed:

                            alpha = 1        alpha = 0.75
    this config, 8 epochs   0.837 (0.47)     0.834 (0.49)
    this config, 5 epochs   0.796 (0.60)
    the report              0.82  (0.91)     0.78  (0.95)

The network has 91.8 M mult-adds at alpha = 1, twice those of CIFAR v1. The report does not print its learning rate.
This config takes the rate of `cifar_v1`, because RMSprop with epsilon 1 moves like momentum SGD.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    c = default.get_config()
    c.model.variant = "cifar28"
    c.augment.pad = 0
    c.augment.crop = 28
    c.optim.name = "rmsprop"
    c.optim.lr = 0.4
    c.model.bn_epsilon = 1e-5
    c.optim.warmup_epochs = 0.5
    c.train.epochs = 8
    c.train.batch_size = 64
    return c
