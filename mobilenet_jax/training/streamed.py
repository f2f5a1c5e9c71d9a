"""The batches of a run whose set is read from disk."""

from collections.abc import Mapping

from mobilenet_jax.config import RunSpec
from mobilenet_jax.data import images
from mobilenet_jax.data.crops import Crop
from mobilenet_jax.training import devices


class Streamed:
    """The streams of one run, whose threads are as many as the cores."""

    def __init__(self, spec: RunSpec, splits: Mapping[str, images.Pictures]):
        a, self._protocol = spec.config.augment, spec.config.data.protocol
        resize = round(a.resize * spec.resolution / spec.image_size)
        self._crop = Crop(spec.resolution, a.scale, a.ratio, resize, a.flip, self._protocol)
        self._spec, self._splits, self._loader = spec, splits, images.Loader(devices.cores())
        self.close = self._loader.close

    def training(self, step: int) -> images.Stream:
        """Return the batches from a step of the run to its end."""
        spec, steps = self._spec, range(step, self._spec.total_steps)
        lengths = spec.steps_per_epoch, spec.config.train.batch_size
        return self._loader.training(self._splits["train"], self._crop, spec.config.seed, steps, *lengths)

    def evaluation(self, split: str, batch_size: int) -> images.Stream:
        """Return batches that hold each picture of a split once."""
        return self._loader.evaluation(self._splits[split], self._protocol, self._spec.resolution, batch_size)

    @property
    def undecodable(self) -> set[str]:
        """The names of the pictures that could not be decoded so far."""
        return set().union(*(split.undecodable.names for split in self._splits.values()))
