"""PyTorch's side of ``versus_pytorch.py``: a process that answers requests, one line of JSON each.

The networks, the usual sampling loop of the field (SampleUnderNoise of Cohen et al. 2019, written from the
pseudo-code) and the best that a PyTorch user would make of it. Needs torch and numpy, nothing else.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

try:
    import torch
    from torch import nn
    from torch.nn import functional
    from torch.nn.utils.fusion import fuse_conv_bn_eval
except ImportError as missing:
    sys.exit(f"PyTorch is needed for this comparison ({missing}): pip install torch")


class Normalize(nn.Module):
    """(x - 1/2) / (1/4), as in the network that it is compared with."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images [batch, channels, height, width] in and out."""
        return (x - 0.5) / 0.25


class ConvNorm(nn.Module):
    """A convolution without bias and batch normalisation."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, stride, (size - 1) // 2, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Feature maps in and out."""
        return self.norm(self.conv(x))

    def fold(self) -> None:
        """One convolution in place of both."""
        self.conv, self.norm = fuse_conv_bn_eval(self.conv, self.norm), nn.Identity()


class Block(nn.Module):
    """A residual block: two 3x3 convolutions, or (bottleneck) 1x1, 3x3 and 1x1."""

    def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool):
        super().__init__()
        outputs = 4 * width if bottleneck else width
        if bottleneck:
            self.conv1 = ConvNorm(inputs, width, 1)
            self.conv2 = ConvNorm(width, width, 3, stride)
            self.conv3 = ConvNorm(width, outputs, 1)
        else:
            self.conv1 = ConvNorm(inputs, width, 3, stride)
            self.conv2 = ConvNorm(width, width, 3)
        changes = stride != 1 or inputs != outputs
        self.shortcut = ConvNorm(inputs, outputs, 1, stride) if changes else nn.Identity()
        self.bottleneck = bottleneck

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Feature maps in and out."""
        y = self.conv2(functional.relu(self.conv1(x)))
        if self.bottleneck:
            y = self.conv3(functional.relu(y))
        return functional.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """The residual networks of He et al. (2016), for CIFAR and for ImageNet."""

    def __init__(self, stages: tuple[int, ...], widths: tuple[int, ...], imagenet: bool, num_classes: int):
        super().__init__()
        self.normalize = Normalize()
        self.stem = ConvNorm(3, widths[0], *((7, 2) if imagenet else (3, 1)))
        self.pool = nn.MaxPool2d(3, 2, 1) if imagenet else nn.Identity()
        blocks, features = [], widths[0]
        for stage, (count, width) in enumerate(zip(stages, widths, strict=True)):
            for number in range(count):
                blocks.append(Block(features, width, 2 if stage and not number else 1, imagenet))
                features = 4 * width if imagenet else width
        self.blocks = nn.ModuleList(blocks)
        self.linear = nn.Linear(features, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images [batch, 3, height, width] to logits [batch, num_classes]."""
        x = self.pool(functional.relu(self.stem(self.normalize(x))))
        for block in self.blocks:
            x = block(x)
        return self.linear(x.mean((2, 3)))


def build(name: str) -> ResNet:
    """A network of the comparison by its name."""
    if name == "resnet50":
        return ResNet((3, 4, 6, 3), (64, 128, 256, 512), True, 1000)
    per_stage = (int(name.removeprefix("cifar-resnet")) - 2) // 6
    return ResNet((per_stage,) * 3, (16, 32, 64), False, 10)


def usual_counts(
    model: nn.Module, x: torch.Tensor, sigma: float, num_samples: int, batch_size: int, num_classes: int
) -> np.ndarray:
    """SampleUnderNoise as it is usually written: repeat, randn_like, forward, argmax, counts on the host."""
    counts = np.zeros(num_classes, int)
    for start in range(0, num_samples, batch_size):
        rows = min(batch_size, num_samples - start)
        batch = x.repeat((rows, 1, 1, 1))
        noise = torch.randn_like(batch) * sigma
        answers = model(batch + noise).argmax(1)
        counts += np.bincount(answers.cpu().numpy(), minlength=num_classes)
    return counts


def make_step(
    model: nn.Module, sigma: float, batch_size: int, num_classes: int, dtype: torch.dtype
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """One batch without leaving the device: ``step(counts, x) -> counts``. Noise is float32, then cast."""

    def step(counts: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        noise = torch.randn((batch_size, *x.shape), device=x.device)
        noise = noise.contiguous(memory_format=torch.channels_last)
        answers = model((x + sigma * noise).to(dtype)).argmax(1)
        return counts + functional.one_hot(answers, num_classes).sum(0)

    return step


class Side:
    """State of the process: a network, its variants, and the requests that it answers."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.ways: dict[str, Callable[[int], np.ndarray]] = {}

    def start(self, options: dict[str, Any]) -> dict[str, Any]:
        """Chooses the device; says what there is."""
        if options["platform"] == "gpu":
            if not torch.cuda.is_available():
                raise RuntimeError("JAX computes on a GPU here, but this PyTorch finds none")
            self.device = torch.device("cuda")
            torch.backends.cudnn.benchmark = True
        elif options["platform"] != "cpu":
            raise RuntimeError(f"PyTorch cannot be compared on {options['platform']!r}, only on cpu and gpu")
        torch.set_num_threads(options["threads"])
        return {
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "mkldnn": torch.backends.mkldnn.is_available(),
            # What the usual loop runs with: PyTorch's own defaults.
            "convolutions_in_tf32": torch.backends.cudnn.allow_tf32,
            "products_in_tf32": torch.backends.cuda.matmul.allow_tf32,
        }

    @torch.inference_mode()
    def load(self, options: dict[str, Any]) -> dict[str, Any]:
        """Builds the network from a file of weights; returns its logits on the file's inputs, plain and folded."""
        stored = np.load(options["file"])
        self.weights = {name[2:]: torch.from_numpy(stored[name]) for name in stored.files if name[:2] == "w:"}
        self.options = options
        self.x = torch.from_numpy(stored["inputs"])[0].to(self.device)
        self.ways = {}
        inputs = torch.from_numpy(stored["inputs"]).to(self.device)
        tf32 = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        try:
            plain, folded = self._model(False)(inputs), self._model(True)(inputs)
        finally:
            torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = tf32
        return {"plain": plain.cpu().tolist(), "folded": folded.cpu().tolist()}

    def _model(self, best: bool, dtype: torch.dtype = torch.float32) -> nn.Module:
        model = build(self.options["network"])
        missing, unknown = model.load_state_dict(self.weights, strict=False)
        wrong = [name for name in [*missing, *unknown] if not name.endswith("num_batches_tracked")]
        if wrong:
            raise RuntimeError(f"weights do not fit: {wrong[:5]}")
        model = model.eval().requires_grad_(False)
        if best:
            for module in model.modules():
                if isinstance(module, ConvNorm):
                    module.fold()
            model = model.to(dtype, memory_format=torch.channels_last)
        return model.to(self.device)

    @torch.inference_mode()
    def prepare(self, options: dict[str, Any]) -> dict[str, Any]:
        """Makes one variant and runs it once: seconds of that, or the reason why it cannot run."""
        started = time.perf_counter()
        sigma, batch_size, num_classes = (
            self.options[name] for name in ("sigma", "batch_size", "num_classes")
        )
        if options["usual"]:
            model = self._model(False)

            def way(num_samples: int) -> np.ndarray:
                return usual_counts(model, self.x, sigma, num_samples, batch_size, num_classes)
        else:
            dtype = getattr(torch, options["dtype"])
            step = make_step(self._model(True, dtype), sigma, batch_size, num_classes, dtype)
            if options["compile"]:
                step = torch.compile(step, mode=options["compile"])

            def way(num_samples: int) -> np.ndarray:
                counts = torch.zeros(num_classes, dtype=torch.int64, device=self.device)
                for _ in range(num_samples // batch_size):
                    if options["compile"]:
                        torch.compiler.cudagraph_mark_step_begin()
                        counts = counts.clone()  # the graph reuses its output
                    counts = step(counts, self.x)
                return counts.cpu().numpy()

        try:
            counts = way(2 * batch_size)
        except (
            Exception
        ) as error:  # no compiler, an operation that is missing: whatever it is, it is reported
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            return {"reason": f"{type(error).__name__}: {reason[:200]}"}
        if counts.sum() != 2 * batch_size:
            raise RuntimeError(f"{options['name']} counted {counts.sum()} of {2 * batch_size} samples")
        self.ways[options["name"]] = way
        return {"seconds": time.perf_counter() - started}

    @torch.inference_mode()
    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        """Runs a variant: its counts, which are on the host, so that the device is done."""
        return {"counts": self.ways[options["name"]](options["num_samples"]).tolist()}

    def memory(self, _: dict[str, Any]) -> dict[str, Any]:
        """Most memory of the device so far."""
        on_gpu = self.device.type == "cuda"
        return {"device": torch.cuda.max_memory_allocated() if on_gpu else None}


def main() -> None:
    """Answers requests until there are no more."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    # Whatever libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    side = Side()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(side, request.pop("do"))(request)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
