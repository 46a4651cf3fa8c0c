"""All invariants of the README at once, on any model.

Each function raises :class:`lwdna.errors.VerificationError` with what differs, and returns a short
statement of what it compared otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from lwdna.channels import Policy
from lwdna.fx_passes.analyse import analyse
from lwdna.fx_passes.capture import capture
from lwdna.fx_passes.invariants import (
    cost,
    evaluated,
    identity,
    masked_equivalence,
    measured_cost,
    restriction,
    round_trip,
)
from lwdna.fx_passes.module import detached_copy
from lwdna.fx_passes.outputs import Outputs
from lwdna.fx_passes.refusals import check_values
from lwdna.fx_passes.resize import resize
from lwdna.fx_passes.state import stir, untouched
from lwdna.fx_passes.trains import trains
from lwdna.fx_passes.widen import widen_copies
from lwdna.graph import ChannelGraph, Copies
from lwdna.inputs import as_arguments
from lwdna.tables import html_table

__all__ = [
    "Verification",
    "cost",
    "evaluated",
    "identity",
    "masked_equivalence",
    "measured_cost",
    "random_copies",
    "restriction",
    "round_trip",
    "stir",
    "trains",
    "untouched",
    "verify",
]


@dataclass(frozen=True)
class Verification:
    """What :func:`verify` compared, by invariant; prints as text."""

    statements: dict[str, str]

    def __str__(self) -> str:
        return "\n".join(f"{name}: {said}" for name, said in self.statements.items())

    def _repr_html_(self) -> str:
        return html_table(("invariant", "what was compared"), tuple(self.statements.items()))


def verify(
    model: nn.Module,
    example_inputs: Any,
    *,
    keep: float = 0.7,
    policy: Policy = "auto",
    outputs: Outputs = "fixed",
    seed: int = 0,
) -> Verification:
    """Check all seven invariants on a model, with a random shrinking and widening of it.

    Args:
        model: any ``nn.Module``; it is not changed (which is one of the checks).
        example_inputs: real inputs of ``forward``, batch first; see
            :func:`lwdna.inputs.as_arguments`.
        keep: fraction of every prunable group that the random shrinking keeps.
        policy: see :func:`lwdna.choices.choose_axis`.
        outputs: see :func:`lwdna.analyse`.
        seed: of the choice of units and of the values that stand in for constant parameters.

    Returns:
        What was compared.

    Raises:
        VerificationError: an invariant does not hold.
        UnsupportedModelError: the model is on the meta device.
    """
    rng = np.random.default_rng(seed)
    example_inputs = as_arguments(model, example_inputs)
    check_values(model, "verify")
    with untouched(model), torch.random.fork_rng():
        work = detached_copy(model)
        stir(work, seed=seed)
        gm = capture(work, example_inputs)
        graph = analyse(gm, example_inputs, policy=policy, outputs=outputs)
        fewer = random_copies(graph, keep, rng)
        small = resize(gm, graph, fewer)
        more = widen_copies(graph, 1.5)
        said = {
            "identity": identity(work, gm, example_inputs),
            "round trip": round_trip(gm, graph, more, example_inputs),
            "masked equivalence": masked_equivalence(gm, graph, fewer, small, example_inputs),
            "restriction": restriction(graph, fewer, small),
            "cost": cost(graph, fewer, small),
            "trains": trains(small, example_inputs),
        }
    return Verification({**said, "untouched": "the model is as it was"})


def random_copies(graph: ChannelGraph, keep: float, rng: np.random.Generator) -> Copies:
    """A random configuration that keeps the fraction ``keep`` (at least 2) of every group."""
    copies = graph.keep_all()
    for group in graph.groups:
        if group.prunable:
            kept = max(min(2, group.width), round(group.width * keep))
            copies[rng.permutation(group.units)[kept:]] = 0
    return graph.completed(copies)
