"""Products of tensors by labels, which decompose into flattened matrix products otherwise.

Flattening several labels into one dimension and taking them apart again would look like a choice
between them, though nothing but the product itself depends on their order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from lwdna.channels import Vector
from lwdna.fx_passes.rules.contraction import product
from lwdna.fx_passes.rules.registry import OpCall, rule

aten = torch.ops.aten
_ELLIPSIS = "..."


@rule(aten.einsum)
def einsum(op: OpCall, equation: str, tensors: Sequence[Tensor], *, path: Any = None) -> None:
    """Dimensions of one label are one; labels that the result lacks are summed.

    Source: https://pytorch.org/docs/stable/generated/torch.einsum.html; the pairwise products, of
    which only those with a sum are matrix products, follow ``einsum`` and ``sumproduct_pair`` in
    ATen/native/Linear.cpp.
    """
    operands, result = _labels(equation, [t.dim() for t in tensors])
    met: dict[str, Vector] = {}
    sizes: dict[str, int] = {}
    for t, labels in zip(tensors, operands, strict=True):
        for d, (label, v) in enumerate(zip(labels, op.vec(t), strict=True)):
            if labels.count(label) > 1:
                op.freeze(v, "diagonal of a product of tensors")
            if t.shape[d] > 1:  # a single entry is broadcast
                op.couple(met.setdefault(label, v), v)
                sizes[label] = t.shape[d]
    for label, v in met.items():
        if label not in result:
            holders = [t for t, labels in zip(tensors, operands, strict=True) if label in labels]
            op.freeze_addresses(v, holders)
    op.give(tuple(met.get(label) for label in result))
    for t, labels in zip(tensors, operands, strict=True):
        summed = [d for d, label in enumerate(labels) if label not in result]
        for d in summed:
            op.mix(t, d, "zero")
        if t.dim() == 2 and len(summed) == 1:
            op.recorder.add_role(t, 1 - summed[0], summed[0], 1)
    given = [
        {label for d, label in enumerate(labels) if t.shape[d] > 1}
        for t, labels in zip(tensors, operands, strict=True)
    ]
    for used, left in _products(given, set(result), path):
        for kind, kept in (("matmul", sorted(used)), ("activations", sorted(left))):
            product(op, kind, tuple(sizes[k] for k in kept), tuple(met[k] for k in kept))


def _labels(equation: str, ranks: Sequence[int]) -> tuple[list[list[str]], list[str]]:
    """Labels of the dimensions of each operand and of the result; an ellipsis has numbers.

    >>> _labels("...ij, jk", [3, 2])
    ([['0', 'i', 'j'], ['j', 'k']], ['0', 'i', 'k'])
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    texts = left.split(",")
    lengths = [
        rank - len(text.replace(_ELLIPSIS, "")) if _ELLIPSIS in text else 0
        for text, rank in zip(texts, ranks, strict=True)
    ]
    most = max(lengths)

    def spelled(text: str, length: int) -> list[str]:
        before, dots, after = text.partition(_ELLIPSIS)
        numbers = [str(k) for k in range(most - length, most)] if dots else []
        return [*before, *numbers, *after]

    operands = [spelled(*pair) for pair in zip(texts, lengths, strict=True)]
    if arrow:
        return operands, spelled(right, most)
    every = list(chain(*operands))
    once = sorted(label for label in every if label.isalpha() and every.count(label) == 1)
    return operands, [*map(str, range(most)), *once]


def _products(
    operands: list[set[str]], result: set[str], path: Sequence[int] | None
) -> Iterator[tuple[set[str], set[str]]]:
    """(labels of a matrix product, labels of what it gives), pair by pair of the operands."""
    operands = list(operands)
    steps = list(path) if path else [0, 1] * (len(operands) - 1)
    for i, j in zip(steps[::2], steps[1::2], strict=True):
        second, first = (operands.pop(k) for k in sorted((i, j), reverse=True))
        needed = result.union(*operands)
        both = first & second
        used = {label for label in first | second if label in needed or label in both}
        if both - needed:
            yield used, used & needed
        operands.append(used & needed)
