"""The former name of `configs/cifar28.py`."""

from configs.cifar28 import get_config as get_config
