"""Numbers of channels that a device's kernels like."""

from __future__ import annotations

import torch

#: Channels of a block in oneDNN's layouts, by what the processor computes with; 128-bit registers
#: hold four.
_CPU_BLOCK = {"AVX512": 16, "AVX2": 8}
_CPU_LEAST = 4
#: Half-precision numbers in 16 bytes, which tensor cores take at once.
_TENSOR_CORE = 8


def preferred_divisor(device: torch.device | str) -> int:
    """The divisor of widths that lets a device's convolutions and products run at full speed.

    Between two multiples, kernels mostly take as long as for the larger one.

    Args:
        device: where the network is to run. For the CPU, that of this machine.

    Returns:
        For :class:`lwdna.Constraints` and :func:`lwdna.measure_latency`.

    Source: oneDNN, "Understanding Memory Formats" (blocks of 8 and 16 channels); NVIDIA, "Matrix
    Multiplication Background User's Guide" (dimensions in multiples of 16 bytes).

    >>> preferred_divisor("cuda")
    8
    """
    if torch.device(device).type != "cpu":
        return _TENSOR_CORE
    return _CPU_BLOCK.get(torch.backends.cpu.get_cpu_capability(), _CPU_LEAST)
