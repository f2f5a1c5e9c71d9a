"""MobileNet v2 on CIFAR-10 (stem 1; stages 1, 1, 2, 2, 1, 2, 1).

    python launch.py --config configs/cifar_v2.py --config.model.alpha=0.35 --config.train.epochs=4

Test accuracy of this network with `--config.optim.name=sgd`: 0.769 ± 0.007 over three seeds (docs/results.md). Time: 12
minutes each on one core.

The recipe is that of `cifar_v1`. On held-out images at alpha = 0.35 and 3 epochs, SGD reached more with
`--config.optim.lr=0.2` (one seed each, docs/results.md).
"""

from ml_collections import ConfigDict

from configs import cifar_v1


def get_config() -> ConfigDict:
    c = cifar_v1.get_config()
    c.model.version = "v2"
    return c
