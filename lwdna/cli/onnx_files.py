"""A network as an ONNX file, and what ONNX Runtime makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lwdna.errors import UnsupportedModelError, VerificationError

#: Largest difference that float32 and another order of summation explain, of the largest output.
CLOSE = 1e-3


def program(net: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    """A network in evaluation mode as an ``onnx`` program, with a dynamic batch.

    Raises:
        UnsupportedModelError: it cannot be exported, or the packages are not installed.

    Source: torch.onnx.export with ``dynamo=True``.
    """
    try:
        import onnxruntime  # noqa: F401 - to compare with
        import onnxscript  # noqa: F401 - torch.onnx builds on it
    except ImportError as e:
        raise UnsupportedModelError(f'{e}: pip install "lwdna[onnx]"') from e
    names = [f"input{k}" for k in range(len(inputs))] if len(inputs) > 1 else ["input"]
    batch = torch.export.Dim("batch")
    try:
        with torch.no_grad():
            return torch.onnx.export(
                net,
                inputs,
                dynamo=True,
                dynamic_shapes=tuple({0: batch} for _ in inputs),
                input_names=names,
                verbose=False,
            )
    except Exception as e:
        raise UnsupportedModelError(
            f"PyTorch cannot export this {type(net).__name__} to ONNX: {type(e).__name__}: {e}"
        ) from e


def difference(net: nn.Module, inputs: tuple[Tensor, ...], path: Path) -> float:
    """Largest difference of outputs between a file and its network, of the largest output.

    Raises:
        VerificationError: it is more than :data:`CLOSE`, or no number.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    fed = {given.name: t.numpy() for given, t in zip(session.get_inputs(), inputs, strict=True)}
    with torch.no_grad():
        expected = [t for t in tree_leaves(net(*inputs)) if isinstance(t, Tensor)]
    largest = 0.0
    for theirs, ours in zip(session.run(None, fed), expected, strict=True):
        scale = max(float(ours.abs().max()), 1e-30)
        largest = max(largest, float((torch.from_numpy(theirs) - ours).abs().max()) / scale)
    if not largest <= CLOSE:
        raise VerificationError(
            f"ONNX Runtime's outputs differ from PyTorch's by {largest:.2g} of the largest: the "
            "file is not kept"
        )
    return largest
