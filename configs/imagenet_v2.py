"""MobileNet v2 on ImageNet: the v2 paper's Table 4 (top-1 72.0 % at alpha = 1, 300 M mult-adds).

    python launch.py --config configs/imagenet_v2.py --dry_run
    python launch.py --config configs/imagenet_v2.py --config.data.dir=/data/imagenet
    python launch.py --config configs/imagenet_v2.py --config.model.alpha=1.4 --dry_run

The recipe is that of the paper (section 6.1): RMSprop, a rate of 0.045 for batches of 96, times 0.98 every epoch,
weight decay 4e-5, dropout (0.2 in TF-slim).

Calculated, not measured: at least 5.3 hours on one H100 (three forward passes by the roofline, 495 T mult-adds/s, 3.35
TB/s, batches of 512, float32 maps), if enough cores decode (docs/imagenet.md).
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    c = default.get_config()
    c.model.version = "v2"
    c.model.strides = "imagenet"
    c.model.dropout = 0.2
    c.model.bn_decay = 0.997
    c.data.name = "imagenet2012"
    c.augment.pad = 0
    c.optim.name = "rmsprop"
    c.optim.lr = 0.12
    c.optim.schedule = "exponential"
    c.train.epochs = 300
    c.train.batch_size = 96
    c.train.ema_decay = 0.9999
    return c
