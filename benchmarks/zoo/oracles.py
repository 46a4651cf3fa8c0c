"""The invariants of ``lwdna.fx_passes.verify`` on one model of a zoo, without repeated forwards."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

import lwdna
from benchmarks.measure import described
from benchmarks.zoo.inputs import Shape, example
from lwdna.errors import VerificationError
from lwdna.fx_passes import verify
from lwdna.fx_passes.module import meta_twin
from lwdna.fx_passes.regions import tensors_in
from lwdna.fx_passes.state import require
from lwdna.fx_passes.widen import widen_copies
from lwdna.graph import ChannelGraph, Copies

_WIDEN = 1.25  # of the round trip


@dataclass(frozen=True)
class Case:
    """One model with its capture, its channel graph and its shrunk network.

    Attributes:
        name: ``"library:model"``.
        model: the original.
        gm: its capture.
        graph: its channel graph.
        copies: what was kept, shape (units,).
        net: the shrunk network.
        sizes: of the inputs, without the batch, that the numeric oracles try, one after the other.
        seed: of the inputs.
    """

    name: str
    model: nn.Module
    gm: nn.Module
    graph: ChannelGraph
    copies: Copies
    net: nn.Module
    sizes: tuple[tuple[Shape, ...], ...]
    seed: int


@dataclass(frozen=True)
class Verdict:
    """What the oracles say.

    Attributes:
        held: invariant -> what was compared.
        broken: invariant -> what differs.
        facts: the resolution of the numeric oracles, and why it is not the small one.
    """

    held: dict[str, str]
    broken: dict[str, str]
    facts: dict[str, Any]


def numeric(case: Case) -> Verdict:
    """All invariants, on real inputs."""
    one, two, expected, facts = _settle(case)
    gm, graph, net = case.gm, case.graph, case.net
    wide = widen_copies(graph, _WIDEN)
    checks: dict[str, Callable[[], str]] = {
        "identity": lambda: verify.identity(case.model, gm, one, expected=expected),
        "round trip": lambda: verify.round_trip(gm, graph, wide, one, expected=expected),
        "masked equivalence": lambda: _masked(case, one, two),
        "trains": lambda: verify.trains(net, two, batches=(2,)),
    }
    return _judge({**_structural(case), **checks}, facts)


def _masked(case: Case, one: tuple[Any, ...], two: tuple[Any, ...]) -> str:
    """Masked equivalence; where it fails, once more with values that do not explode.

    Through dozens of batch norms that do not normalise, as their statistics are made up, values
    grow until gates are steps, and rounding errors decide which way they go. A wrong channel is
    wrong with the statistics of the input, too.
    """
    gm, graph, copies = case.gm, case.graph, case.copies
    try:
        return verify.masked_equivalence(gm, graph, copies, case.net, one)
    except VerificationError:
        again = lwdna.resize(gm, graph, copies).state_dict()
        if any(not torch.equal(t, again[name]) for name, t in case.net.state_dict().items()):
            raise
        settled = copy.deepcopy(gm)
        update_bn([two[0]], settled)
        net = lwdna.resize(settled, graph, copies)
        said = verify.masked_equivalence(settled, graph, copies, net, one)
        return f"{said}, with the input's statistics in batch norms"


def on_meta(case: Case) -> Verdict:
    """The invariants that need no values: shapes, cost and restriction."""
    return _judge({"shapes": lambda: _same_shapes(case), **_structural(case)}, {})


def _structural(case: Case) -> dict[str, Callable[[], str]]:
    return {
        "restriction": lambda: verify.restriction(case.graph, case.copies, case.net),
        "cost": lambda: verify.cost(case.graph, case.copies, case.net),
    }


def _same_shapes(case: Case) -> str:
    """The shrunk network's outputs have the shapes of the original's, at batch size 2."""
    inputs = example(case.name, 2, case.sizes[-1], device="meta")
    ours, theirs = (
        _shapes(verify.evaluated(meta_twin(network), inputs)) for network in (case.net, case.gm)
    )
    require(ours == theirs, f"shapes: {theirs} became {ours}")
    return f"{len(ours)} output shapes as before"


def _judge(checks: Mapping[str, Callable[[], str]], facts: dict[str, Any]) -> Verdict:
    """Run every check, whatever the others say."""
    verdict = Verdict({}, {}, facts)
    for name, check in checks.items():
        try:
            verdict.held[name] = check()
        except Exception as error:
            verdict.broken[name] = described(name, error)
    return verdict


def _settle(
    case: Case,
) -> tuple[tuple[Any, ...], tuple[Any, ...], list[torch.Tensor], dict[str, Any]]:
    """Inputs at batch sizes 1 and 2, the model's outputs on the first, and what was tried.

    The first of the case's sizes that the network runs at: where its Python code branches on sizes,
    it was captured for the last one only.
    """
    facts: dict[str, Any] = {}
    for sizes in case.sizes:
        one, two = (example(case.name, n, sizes, seed=case.seed) for n in (1, 2))
        facts["verified_at"] = _shapes(two)
        if sizes != case.sizes[-1]:
            try:
                verify.evaluated(case.gm, one)
            except Exception as error:
                facts["small_refused"] = described("forward", error)
                continue
        break
    return one, two, verify.evaluated(case.model, one), facts


def _shapes(tensors: Any) -> list[tuple[int, ...]]:
    return [tuple(t.shape) for t in tensors_in(tensors)]
