"""MobileNet v1 on ImageNet with a modern, short recipe: SGD with momentum, a cosine, 100 epochs.

    python launch.py --config configs/imagenet_sgd.py --dry_run
    python launch.py --config configs/imagenet_sgd.py --config.data.dir=/data/imagenet
    python launch.py --config configs/imagenet_sgd.py --config.data.dir=/data/imagenet --config.model.alpha=0.25

It reproduces no paper. It is meant to reach the published accuracy (top-1 70.6 % in the v1 paper, 70.9 % of TF-slim's
network at alpha = rho = 1) in half of the epochs, which is not tested.

Calculated, not measured: at least 1.3 hours on one H100 (three forward passes by the roofline, 495 T mult-adds/s, 3.35
TB/s, batches of 512, float32 maps), if enough cores decode (docs/imagenet.md).
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    c = default.get_config()
    c.model.strides = "imagenet"
    c.model.activation = "relu6"  # as TF-slim's networks
    c.model.bn_decay = 0.99
    c.data.name = "imagenet2012"
    c.augment.pad = 0
    c.optim.lr = 0.1
    c.optim.schedule = "cosine"
    c.optim.warmup_epochs = 5.0
    c.train.epochs = 100
    c.train.batch_size = 512
    c.train.dtype = "bfloat16"
    c.train.label_smoothing = 0.1
    return c
