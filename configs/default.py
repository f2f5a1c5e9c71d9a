"""Every key the program reads, with its meaning. The other configs change a few lines of this one.

A config stores intent: the learning rate is for 256 images, lengths are in epochs, the resolution is a multiplier.
Steps, effective rates and pixels are derived once, after all overrides, by `mobilenet_jax/config.py`.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()

    c.model = ConfigDict()
    c.model.version = "v1"  # 'v1' or 'v2'
    c.model.alpha = 1.0  # width multiplier
    c.model.rho = 1.0  # resolution multiplier: images are resized to round(rho * their side)
    c.model.expansion = 6.0  # v2: expansion ratio t
    c.model.strides = "cifar"  # 'imagenet' (224 -> 7) or 'cifar' (32 -> 2 for v1, 32 -> 4 for v2)
    c.model.variant = "paper"  # v1: 'paper', 'standard_conv', 'shallow' or 'seed004'
    c.model.activation = "auto"  # 'relu', 'relu6', or as the papers: ReLU for v1, ReLU6 for v2
    c.model.bottleneck = "linear"  # v2: 'linear', or 'relu6' after the projection too
    c.model.shortcut = "bottleneck"  # v2: between 'bottleneck's, between 'expansion's, or 'none'
    c.model.dropout = 0.0  # rate before the classifier
    c.model.bn_decay = 0.99  # share of the running batch-norm statistics kept at a step
    c.model.bn_epsilon = 1e-3
    c.model.depthwise = "auto"  # 'shift', 'conv', or the one measured to be faster on the backend

    c.data = ConfigDict()
    c.data.name = "cifar10"  # 'digits', 'cifar10', or a set that TFDS has prepared as array_record
    c.data.dir = ""  # where TFDS keeps its sets; '' is $TFDS_DATA_DIR, else ~/tensorflow_datasets
    c.data.archive = ""  # cifar10: prepare it from this cifar-10-binary.tar.gz instead of downloading it
    c.data.holdout = (
        0.0  # share of the training split kept for validation; the test split is then used once, at the end
    )

    c.augment = ConfigDict()
    c.augment.pad = 4  # zero pixels around the image before the random crop
    c.augment.crop = 0  # side of the crop in pixels, 0 for the image's own; evaluation takes the centre
    c.augment.flip = True  # random left-right flip

    c.optim = ConfigDict()
    c.optim.name = "sgd"  # 'sgd' (momentum) or 'rmsprop' (TensorFlow's formula)
    c.optim.lr = 0.1  # peak learning rate for 256 images a step; scales linearly with the batch
    c.optim.momentum = 0.9
    c.optim.decay = 0.9  # rmsprop: decay of the mean square
    c.optim.epsilon = 1.0  # rmsprop: added to the mean square inside the root
    c.optim.weight_decay = 4e-5  # L2: this times the weight joins the gradient
    c.optim.decay_depthwise = False  # whether depthwise kernels are decayed too
    c.optim.schedule = "cosine"  # 'constant', 'cosine', 'exponential' (staircase) or 'one_cycle'
    c.optim.lr_decay = 0.98  # exponential: factor at each stair
    c.optim.lr_decay_epochs = 1.0  # exponential: epochs between stairs
    c.optim.warmup_epochs = 0.0  # linear warm-up from 0; one_cycle: length of the rise
    c.optim.clip_norm = 0.0  # gradients are scaled down to this global norm; 0 for never

    c.train = ConfigDict()
    c.train.epochs = 10
    c.train.batch_size = 128
    c.train.dtype = "float32"  # 'float32' or 'bfloat16': what activations are computed in; parameters stay float32
    c.train.label_smoothing = 0.0
    c.train.ema_decay = 0.0  # decay of the moving average of weights and statistics that is evaluated; 0 for none
    c.train.eval_epochs = 1  # evaluate every so many epochs; the last epoch always is
    c.train.checkpoint_epochs = 1.0  # save every so many epochs

    c.point = ""  # several model keys at once, for coupled sweeps: 'alpha=0.75,rho=0.714'

    c.wandb = ConfigDict()
    c.wandb.mode = "auto"  # 'online', 'offline', 'disabled', or auto; $WANDB_MODE wins
    c.wandb.project = "mobilenet_jax"

    c.seed = 0  # of the initial weights, the order of images, augmentation and dropout
    return c
