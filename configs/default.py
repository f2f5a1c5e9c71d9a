"""Every config key with its meaning. The other configs change a few of these keys.

A config stores intent: the learning rate is for 256 images, lengths are in epochs, the resolution is a multiplier.
`mobilenet_jax/config.py` derives steps, rates and pixels once, after all overrides.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()

    c.model = ConfigDict()
    c.model.version = "v1"  # 'v1' or 'v2'
    c.model.alpha = 1.0  # width multiplier
    c.model.rho = 1.0  # resolution multiplier: images are resized to round(rho * side)
    c.model.expansion = 6.0  # v2: expansion ratio t
    c.model.strides = "cifar"  # 'imagenet' (224 -> 7) or 'cifar' (32 -> 2 for v1, 32 -> 4 for v2)
    c.model.variant = "paper"  # v1: 'paper', 'standard_conv', 'shallow' or 'cifar28' (28x28 CIFAR-10)
    c.model.activation = "auto"  # 'relu', 'relu6' or 'auto' (as in the papers: ReLU for v1, ReLU6 for v2)
    c.model.bottleneck = "linear"  # v2: after the projection, 'linear' or 'relu6'
    c.model.shortcut = "bottleneck"  # v2: shortcuts join the 'bottleneck' outputs or the 'expansion' outputs, or 'none'
    c.model.dropout = 0.0  # rate before the classifier
    c.model.bn_decay = 0.99  # share of the running batch-norm statistics that a step keeps
    c.model.bn_epsilon = 1e-3  # added to the variance in batch norm
    c.model.depthwise = "auto"  # 'shift', 'taps', 'conv' or 'auto' ('shift' on a CPU, 'conv' elsewhere)

    c.model.weights = ""  # to start from: a weights.safetensors or a run directory; '' for random ones

    c.data = ConfigDict()
    # 'digits', 'cifar10', 'imagenet2012', 'folder' (pictures in train/<class>/ and val/<class>/), or a set that TFDS
    # has prepared as array_record.
    c.data.name = "cifar10"
    # Directory that holds the TFDS sets, or train/ and val/; '' is $TFDS_DATA_DIR, else ~/tensorflow_datasets.
    c.data.dir = ""
    c.data.archive = ""  # cifar10: prepare it from this cifar-10-binary.tar.gz instead of downloading it
    # Share of the training split that is held out for validation. The test split is then used once, at the end.
    c.data.holdout = 0.0
    c.data.protocol = "slim"  # streamed sets: evaluation views, as TF-slim ('slim') or PyTorch ('torch') cuts them

    c.augment = ConfigDict()
    c.augment.pad = 4  # zero pixels around the image before the random crop
    c.augment.crop = 0  # side of the crop in pixels; 0 is the image's side, or 224; evaluation takes the centre
    # Streamed sets ('imagenet2012', 'folder'): what is cut out of a training picture of any size.
    c.augment.scale = 0.08  # Inception crop: the least share of the area; 0 for none
    c.augment.ratio = 4 / 3  # Inception crop: the largest ratio of its sides
    c.augment.resize = 0  # without the Inception crop: shorter side before a random crop; 0 takes the evaluation view
    c.augment.flip = True  # random left-right flip

    c.optim = ConfigDict()
    c.optim.name = "sgd"  # 'sgd' (momentum) or 'rmsprop' (TensorFlow's formula)
    c.optim.lr = 0.1  # peak learning rate for batches of 256; scales linearly with the batch size
    c.optim.momentum = 0.9  # share of the last update that the next one keeps
    c.optim.decay = 0.9  # rmsprop: decay of the mean square
    c.optim.epsilon = 1.0  # rmsprop: added to the mean square inside the root
    c.optim.weight_decay = 4e-5  # L2, coupled: this times the weight is added to the gradient
    c.optim.decay_depthwise = False  # whether weight decay includes depthwise kernels
    c.optim.schedule = "cosine"  # 'constant', 'cosine', 'exponential' (staircase) or 'one_cycle'
    c.optim.lr_decay = 0.98  # exponential: factor of each step of the staircase
    c.optim.lr_decay_epochs = 1.0  # exponential: epochs between the steps of the staircase
    c.optim.warmup_epochs = 0.0  # linear warm-up from 0; one_cycle: length of the rise
    c.optim.clip_norm = 0.0  # gradients are scaled down to this global norm; 0 for no clipping

    c.train = ConfigDict()
    c.train.epochs = 10  # passes over the training images
    c.train.batch_size = 128  # images per step
    # NOTE: JAX_DEFAULT_MATMUL_PRECISION=highest avoids TF32 products on NVIDIA GPUs, and bfloat16 products on TPUs.
    c.train.dtype = "float32"  # of the activations: 'float32' or 'bfloat16'; parameters and sums are float32
    c.train.label_smoothing = 0.0  # share of each target that is spread over all classes
    c.train.ema_decay = 0.0  # of the moving average of weights and batch-norm statistics; it is evaluated; 0 for none
    c.train.eval_epochs = 1  # evaluate every n epochs and after the last one
    c.train.checkpoint_epochs = 0.0  # save every n epochs; 0 is once a minute
    c.train.devices = 0  # that share a batch; 0 is as many as leave at least 128 images for each

    c.point = ""  # model keys that a sweep changes together: 'alpha=0.75,rho=0.714'

    c.wandb = ConfigDict()
    c.wandb.mode = "auto"  # 'online', 'offline', 'disabled' or 'auto' (online if logged in); $WANDB_MODE wins
    c.wandb.project = "mobilenet_jax"  # $WANDB_PROJECT wins

    c.seed = 0  # of the initial weights, the image order, augmentation and dropout
    return c
