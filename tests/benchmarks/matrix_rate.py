"""The machine's own rate of matrix products, beside which a training step is set."""

import statistics
import time
from typing import Literal

import torch

SIZE_CPU, SIZE_CUDA = 2048, 8192


def matrix_rate(dtype: Literal["float32", "bfloat16"], device: torch.device, repeats: int = 9) -> float:
    """Operations a second (a multiplication and an addition are two) of square products; median after two warm ones.

    2048 rows and columns on CPU, 8192 on CUDA, where 2048 does not fill the machine.
    """
    size = SIZE_CUDA if device.type == "cuda" else SIZE_CPU
    left = torch.randn(size, size, device=device).to(torch_dtype(dtype))
    right = torch.randn(size, size, device=device).to(torch_dtype(dtype))
    taken = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        torch.mm(left, right)
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return 2.0 * size**3 / statistics.median(taken[2:])


def torch_dtype(dtype: Literal["float32", "bfloat16"]) -> torch.dtype:
    """The dtype of that name."""
    return torch.bfloat16 if dtype == "bfloat16" else torch.float32
