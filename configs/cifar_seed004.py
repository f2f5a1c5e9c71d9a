"""The 28x28 CIFAR-10 network of 27 convolutions, random 28x28 crops of the 32x32 images with flips.

    python launch.py --config configs/cifar_seed004.py
    python launch.py --config configs/cifar_seed004.py --config.model.alpha=0.75

Test accuracy 0.837 (loss 0.47) at alpha = 1 and 0.834 (0.49) at alpha = 0.75 after these 8 epochs, one seed each; after
5, 0.796 (0.60) at alpha = 1 (results/cifar10). The report that this network comes from ("MobileNet" on CIFAR-10,
RMSprop, 60 epochs) has 0.82 (0.91) and 0.78 (0.95). 91.8 M mult-adds at alpha = 1: twice those of CIFAR v1. The
learning rate is not printed there; this one is that of `cifar_v1`, as RMSprop with epsilon 1 moves like momentum SGD.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    c = default.get_config()
    c.model.variant = "seed004"
    c.augment.pad = 0
    c.augment.crop = 28
    c.optim.name = "rmsprop"
    c.optim.lr = 0.4
    c.model.bn_epsilon = 1e-5
    c.optim.warmup_epochs = 0.5
    c.train.epochs = 8
    c.train.batch_size = 64
    return c
