"""A small network on a folder of your own pictures: train/<class>/ and val/<class>/, JPEG, PNG or WebP.

    python launch.py --config configs/finetune.py --config.data.dir=DIR
    python launch.py --config configs/finetune.py --config.data.dir=DIR --config.model.alpha=0.5 --config.model.rho=1
    python launch.py --config configs/finetune.py --config.data.dir=DIR --config.model.weights=v2.safetensors

The last one starts from a trained network of the same width, such as an official one (docs/official.md), the others
from random weights. The rate is that of a short training, and the crops keep most of a picture.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    c = default.get_config()
    c.model.version = "v2"
    c.model.strides = "imagenet"
    c.model.alpha = 0.35
    c.model.rho = 0.571
    c.model.dropout = 0.2
    c.model.bn_decay = 0.9
    c.data.name = "folder"
    c.data.protocol = "torch"
    c.augment.pad = 0
    c.augment.scale = 0.35
    c.optim.lr = 0.1
    c.optim.schedule = "one_cycle"
    c.optim.warmup_epochs = 5.0
    c.train.epochs = 30
    c.train.batch_size = 64
    c.train.label_smoothing = 0.1
    return c
