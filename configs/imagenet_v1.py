"""MobileNet v1 on ImageNet: the v1 paper's Tables 4 to 7 (top-1 70.6 % at alpha = rho = 1, 569 M mult-adds).

    python launch.py --config configs/imagenet_v1.py --dry_run
    python launch.py --config configs/imagenet_v1.py --config.data.dir=/data/imagenet
    python launch.py --config configs/imagenet_v1.py --config.model.alpha=0.5 --config.model.rho=0.714 --dry_run

The recipe has the paper's optimiser, RMSprop (section 3.2), no label smoothing, no weight decay on depthwise kernels.
The paper prints no schedule: the rate is 0.045 for batches of 64, times 0.98 every 2.5 epochs (as in TF-slim's v2
recipe), with epsilon 1 and a moving average. TF-slim's script for v1 (research/slim/nets/mobilenet_v1_train.py) has
the same batches, first rate and weight decay, but plain SGD, times 0.94 every 2.5 epochs, and no average:

    python launch.py --config configs/imagenet_v1.py --config.optim.name=sgd --config.optim.momentum=0 \
      --config.optim.lr_decay=0.94 --config.train.ema_decay=0 --dry_run

Calculated, not measured: at least 2.6 hours on one H100 (three forward passes by the roofline, 495 T mult-adds/s, 3.35
TB/s, batches of 512, float32 maps), if enough cores decode (docs/imagenet.md).
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    c = default.get_config()
    c.model.strides = "imagenet"
    c.model.bn_decay = 0.9997
    c.data.name = "imagenet2012"
    c.augment.pad = 0
    c.optim.name = "rmsprop"
    c.optim.lr = 0.18
    c.optim.schedule = "exponential"
    c.optim.lr_decay_epochs = 2.5
    c.train.epochs = 200
    c.train.batch_size = 64
    c.train.ema_decay = 0.9999
    return c
