"""Devices: find those to train on, start JAX with the settings that training needs, share them among workers."""

import contextlib
import functools
import importlib.util
import itertools
import os
import pkgutil
import re
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any

from mobilenet_jax.config import RunSpec
from mobilenet_jax.errors import InputError, first_line
from mobilenet_jax.records import identity
from mobilenet_jax.training import program_cache

PINNED = {  # settings of JAX that change what a seed gives, or refuse a correct program: a user's own are not used
    **{"jax_default_prng_impl": "threefry2x32", "jax_threefry_partitionable": True, "jax_random_seed_offset": 0},
    **{"jax_enable_x64": False, "jax_numpy_dtype_promotion": "standard", "jax_numpy_rank_promotion": "allow"},
    **{"jax_transfer_guard": "allow", "jax_no_tracing": False, "jax_no_execution": False},
    **{"jax_debug_nans": False, "jax_debug_infs": False},  # a loss that is not finite is a result
}
_IMAGES_EACH = 128  # of a batch, at least: batch norm makes the devices wait for each other twice a layer


def find_devices() -> Sequence[Any]:
    """Return the devices to train on, with the settings of JAX that training needs; raise InputError without any."""
    with starting_jax():
        import jax

        for name in PINNED.keys() & jax.config.values:  # another version of JAX may lack one
            jax.config.update(name, PINNED[name])
        if jax.config.values.get("jax_disable_jit"):
            raise ValueError("training compiles its programs")
        program_cache.use_compilation_cache()
        return jax.devices()


@contextlib.contextmanager
def starting_jax() -> Iterator[None]:
    """Turn what JAX raises into an InputError that names its settings in the environment: often they are the reason."""
    try:
        yield
    except Exception as e:
        chosen = " and ".join(f"{k}={v}" for k, v in os.environ.items() if k.startswith(identity.SETTINGS))
        reason = first_line(e) if str(e) else "no device"  # JAX asserts that a platform has a plugin
        reason = reason.partition(" (set JAX_PLATFORMS=")[0]  # workers that have a GPU do not leave the choice to JAX
        hint = "; JAX_PLATFORMS=cpu trains on the CPU" if _chosen_platform()[:3] not in ("", "cpu") else ""
        raise InputError(f"JAX does not start on this machine{chosen and f' with {chosen}'}: {reason}{hint}") from None


def choose_devices(spec: RunSpec, devices: Sequence[Any]) -> Sequence[Any]:
    """Return those of `devices` that share a batch; raise InputError if there are fewer than the config asks for."""
    batch, count = spec.config.train.batch_size, spec.config.train.devices
    if count > len(devices):
        raise InputError(f"config.train.devices={count}: this machine has {len(devices)}")
    most = max(1, min(len(devices), batch // _IMAGES_EACH))
    return devices[: count or max(n for n in range(1, most + 1) if batch % n == 0)]


def device_name(devices: Sequence[Any]) -> str:
    """Return the name of the devices, as summaries hold it: 'cpu (2 cores)', '8 x NVIDIA H100'."""
    kind, n = devices[0].device_kind, cores()
    name = f"{kind} ({n} core{'s' * (n > 1)})" if devices[0].platform == "cpu" else kind
    return name if len(devices) == 1 else f"{len(devices)} x {name}"


@functools.cache
def device_facts() -> dict[str, str]:
    """Return for `env.json` what a result depends on next to the device: precision, and off CPUs runtime and driver.

    The precision is JAX's for products of float32: 'default' means TF32 on recent NVIDIA GPUs, bfloat16 on TPUs.
    """
    import jax

    client = jax.devices()[0].client
    facts = {"matmul_precision": jax.config.jax_default_matmul_precision or "default"}  # pyright: ignore[reportAttributeAccessIssue]
    if client.platform != "cpu":
        facts["runtime"] = " ".join(client.platform_version.split())
        if drivers := (_nvidia_smi("--query-gpu=driver_version", "--format=csv,noheader") or "").split():
            facts["driver"] = drivers[0]
    return facts


def trains_on_cpu() -> bool:
    """Return whether JAX will train on the CPU, without an import of JAX.

    The plugin of another platform counts as its device. Only of NVIDIA GPUs it is known whether the machine has one.
    """
    if chosen := _chosen_platform():
        return chosen.startswith("cpu")
    found = importlib.util.find_spec("jax_plugins")  # a namespace that all plugins but that of TPUs share
    plugins = [plugin.name for plugin in pkgutil.iter_modules(found.submodule_search_locations)] if found else []
    others = any(not name.startswith("xla_cuda") for name in plugins) or importlib.util.find_spec("libtpu")
    return not (others or visible_gpus())


def visible_gpus() -> list[str]:
    """Return the NVIDIA GPUs that JAX may use in this process, by the names that CUDA_VISIBLE_DEVICES takes."""
    plugins = [importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)]
    if not (_chosen_platform() or "cuda").startswith(("cuda", "gpu")) or not any(plugins):
        return []
    listed = _nvidia_smi("--list-gpus")
    numbers, uuids = (re.findall(known, listed or "") for known in (r"(?m)^GPU (\d+)", r"UUID: ([^)]+)"))

    def exists(name: str) -> bool:
        found = name in numbers or "/" in name or sum(uuid.startswith(name) for uuid in uuids) == 1  # MIG-GPU-UUID/1/2
        return (listed is None or found) and bool(re.match(r"\d|(GPU|MIG)-", name))

    # As CUDA reads the list: a name of no device ends it, and with a repeated device all are hidden.
    names = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(numbers)).split(",")
    names = [*itertools.takewhile(exists, map(str.strip, names))]
    return names if len({*names}) == len(names) else []


def _nvidia_smi(*arguments: str) -> str | None:
    """Return what the driver's tool prints, '' if the driver does not work, None without the tool."""
    try:
        done = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else ""


def _chosen_platform() -> str:
    """Return what the user wants JAX to train on, '' if it may choose."""
    return os.environ.get("JAX_PLATFORMS") or os.environ.get("JAX_PLATFORM_NAME") or ""


def gpu_settings(number: int, count: int, gpus: Sequence[str]) -> dict[str, str]:
    """Return the environment variables that give worker `number` of `count` its share of the GPUs."""
    shared = -(-count // len(gpus))  # workers per GPU
    settings = {"CUDA_VISIBLE_DEVICES": ",".join(gpus[number::count]) or gpus[number % len(gpus)]}
    settings["JAX_PLATFORMS"] = "cuda"  # with '' or 'cuda,cpu', JAX trains on the CPU if it cannot use the GPU
    if shared > 1 and not {"XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"} & os.environ.keys():
        # By default, each JAX process takes three quarters of the memory. A process needs some outside its share.
        settings["XLA_CLIENT_MEM_FRACTION"] = f"{(90 - shared) // shared / 100:.2f}"
    return settings


def share_of_cores(number: int, count: int) -> set[int]:
    """Return the CPU cores of worker `number` of `count`: XLA starts one thread for each that its process may use."""
    found = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    n = len(found)
    return {*found[number * n // count : (number + 1) * n // count]} or {*found[number % max(1, n) :][:1]}


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
