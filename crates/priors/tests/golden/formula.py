"""Weights from an integer formula of tensor name and index, the same in `src/weights/formula.rs`.

They let a golden hold inputs and outputs only.
"""

import math

import numpy as np
import torch

M = np.uint64(0xFFFFFFFF)


def unit(name, n):
    """n numbers in [0, 1) in f64: an integer hash of the UTF-8 name and the flat row-major index."""
    h = 0x811C9DC5
    for byte in name.encode():
        h = ((h ^ byte) * 0x01000193) & 0xFFFFFFFF
    x = (np.uint64(h) + np.arange(n, dtype=np.uint64) * np.uint64(2654435761)) & M
    x ^= x >> np.uint64(15)
    x = (x * np.uint64(2246822519)) & M
    x ^= x >> np.uint64(13)
    x = (x * np.uint64(3266489917)) & M
    x ^= x >> np.uint64(16)
    return x.astype(np.float64) / 2.0**32


def signed(name, shape):
    """2u-1 in f64, as an array of this shape."""
    return (2.0 * unit(name, math.prod(shape)) - 1.0).reshape(shape)


def weight(name, shape):
    """A parameter: fan-in scaled, or a norm's 1 +- 0.1, a bias's +- 0.1, an embedding table's +- 0.5."""
    shape = tuple(shape)
    s = signed(name, shape)
    if len(shape) < 2:
        s = 1.0 + 0.1 * s if name.endswith("weight") else 0.1 * s
    elif "embedding.weight" in name:
        s = 0.5 * s
    else:
        s = s * math.sqrt(3.0 / math.prod(shape[1:]))
    return torch.from_numpy(s.astype(np.float32))


def data(name, shape):
    """An input: uniform with unit variance whatever its shape (stored in the golden, so Rust needs no copy of this)."""
    s = signed(name, tuple(shape)) * math.sqrt(3.0)
    return torch.from_numpy(s.astype(np.float32))


def fill(model, prefix=""):
    """Sets every parameter of a torch module from its name; returns the module in eval mode and f64."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(weight(prefix + name, p.shape))
    return model.eval().double()
