"""The prunable share: what would vanish with all prunable groups."""

from __future__ import annotations

import pytest
import torch

import lwdna
from lwdna.prunable import free_terms, prunable_share
from tests.factories import plain


@pytest.mark.parametrize("metric", ["macs", "params", "flops_paper", "activations"])
@pytest.mark.parametrize("frozen", [(), ("inner",), ("stem",), ("inner", "stem")])
def test_what_is_prunable_would_vanish(metric: str, frozen: tuple[str, ...]) -> None:
    x = torch.empty(2, 3, 16, 16, device="meta")
    graph = lwdna.analyse(lwdna.capture(plain(), x), x).freeze(frozen)
    rest = graph.widths.copy()
    rest[graph.prunable] = 0
    whole, left = graph.cost()[metric], graph.cost_model(rest)[metric]
    assert prunable_share(graph, metric) == pytest.approx(1 - left / whole)
    assert free_terms(graph).shape == (len(graph.terms),)
    if len(frozen) == 2:
        assert prunable_share(graph, metric) == 0


def test_products_of_groups_count_once_per_term() -> None:
    """With heads and head sizes free, a term is several monomials."""
    model = lwdna.create("timm:test_vit")
    x = torch.empty(2, 3, 160, 160, device="meta")
    captured = lwdna.capture(model, x)
    shares = {
        policy: prunable_share(lwdna.analyse(captured, x, policy=policy), "macs")
        for policy in ("auto", "both")
    }
    assert 0.8 < shares["auto"] <= shares["both"] <= 1
