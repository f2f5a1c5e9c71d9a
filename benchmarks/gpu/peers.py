"""Time the same steps in PyTorch, eager and compiled: channels last, bfloat16 autocast. `peers.py --out FILE`."""

import itertools
import sys
import time

import adapter
import measure
import numpy as np
from measure import TINY

ACTIVATIONS = {"relu": "ReLU", "relu6": "ReLU6"}
MODES = {"eager": None, "compiled": "default", "compiled, graphs": "reduce-overhead"}  # of torch.compile


def network_of(name: str, px: int):
    import torch
    from torch import nn

    rows, epsilon = adapter.layers(name, px)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleDict()
            for row in rows:
                if row.kind == "dense":
                    self.parts[row.name] = nn.Linear(row.inputs, row.outputs)
                elif row.kind != "pool":
                    groups = row.inputs if row.kind == "depthwise" else 1
                    shape = (row.inputs, row.outputs, row.kernel, row.stride, row.kernel // 2)
                    parts = [nn.Conv2d(*shape, groups=groups, bias=False), nn.BatchNorm2d(row.outputs, eps=epsilon)]
                    if row.activation:
                        parts.append(getattr(nn, ACTIVATIONS[row.activation])(inplace=True))
                    self.parts[row.name] = nn.Sequential(*parts)

        def forward(self, x):
            outputs = {}
            for row in rows:
                x = x.mean((2, 3)) if row.kind == "pool" else self.parts[row.name](x)
                if row.shortcut:
                    x = x + outputs[row.shortcut]
                outputs[row.name] = x
            return x

    return Network().to(memory_format=torch.channels_last).train()


def step_of(name: str, px: int, batch: int, mode: str, device: str):
    """Return a function that takes one training step and returns its loss."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (batch, 3, px, px), np.uint8)).to(device).float().div(127.5).sub(1)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.from_numpy(rng.integers(0, adapter.classes(px), batch)).to(device)
    network = network_of(name, px).to(device)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, 0.9, weight_decay=4e-5, fused=device == "cuda")
    loss_fn = torch.nn.CrossEntropyLoss()

    def loss_of(images, labels):
        with torch.autocast(device, torch.bfloat16):
            return loss_fn(network(images), labels)

    if MODES[mode]:
        loss_of = torch.compile(loss_of, mode=MODES[mode])

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(images, labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def cases() -> list[tuple[str, int, int, str]]:
    """Return networks, pixels, batch sizes and modes: eager first, as it starts at once."""
    if TINY:
        return [("v1-0.25", 32, 4, "eager")]
    first = [("v1-0.25", 32, 512), ("v1-1", 32, 512), ("v2-1", 32, 512)]
    more = [("v1-0.25", 32, 128), ("v1-1", 224, 256), ("v2-1", 224, 256), ("v2-0.35", 32, 512)]
    found = [(*case, mode) for mode, case in itertools.product(("eager", "compiled"), first)]
    found += [(*more[0], mode) for mode in ("eager", "compiled", "compiled, graphs")]
    return found + [(*case, mode) for case in more[1:] for mode in ("eager", "compiled")]


def main() -> None:
    args = measure.arguments(__doc__).parse_args()
    try:
        import torch
    except ImportError:
        print("\nPyTorch is not installed: no peers")
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not TINY:
        sys.exit("PyTorch has no GPU here")
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    kind = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    record = measure.Record(args.out, kind, args.seconds, platform=device, cudnn=torch.backends.cudnn.version())
    plan = []
    for name, px, batch, mode in cases():
        row = {"network": name, "px": px, "batch": batch, "dtype": "bfloat16 autocast", "variant": f"torch {mode}"}
        plan.append((row, (name, px, batch, mode)))
    record.plan([row for row, _ in plan])
    for row, (name, px, batch, mode) in plan:
        if record.left() < 5:
            break
        with record.measuring(row):
            torch.compiler.reset()
            started = time.perf_counter()
            step = step_of(name, px, batch, mode, device)
            float(step())
            row["compile_seconds"] = time.perf_counter() - started
            row |= measure.throughput(name, px, batch, measure.windows(step, lambda _: wait()))
            row["loss"] = float(step())
    record.close()


if __name__ == "__main__":
    main()
