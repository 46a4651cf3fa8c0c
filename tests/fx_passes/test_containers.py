"""Arguments that are lists or dicts: a graph that goes over them takes one number of entries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lwdna
from lwdna.fx_passes.capture import capture


class Maps(nn.Module):
    """Two convolutions, run as ``f`` says on maps (B, 3, H, W)."""

    def __init__(self, f: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.f = f

    def forward(self, maps: Any) -> Any:
        return self.f(self, maps)

    def one(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.a(x).relu())
        return out


def maps(n: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(n)
    return [torch.randn(2, 3, 4, 4 + k, generator=generator) for k in range(n)]


def named(n: int) -> dict[str, Tensor]:
    return {f"m{k}": x for k, x in enumerate(maps(n))}


def unpacking(s: Any, both: Any) -> Tensor:
    a, b = both
    return s.one(a).mean() + s.one(b).mean()


def unpacking_the_rest(s: Any, several: Any) -> Tensor:
    a, *rest = several
    return s.one(a).mean() + sum(s.one(b).mean() for b in rest)


GOING_OVER: dict[str, tuple[Callable[[Any, Any], Any], Callable[[int], Any]]] = {
    "a loop": (lambda s, x: [s.one(m) for m in x], maps),
    "its length": (lambda s, x: s.one(x[0]) * len(x), maps),
    "enumerate": (lambda s, x: [k * s.one(m) for k, m in enumerate(x)], maps),
    "a star": (lambda s, x: torch.cat([*x], 3), maps),
    "unpacking": (unpacking, maps),
    "unpacking the rest": (unpacking_the_rest, maps),
    "a tuple": (lambda s, x: [s.one(m) for m in x], lambda n: tuple(maps(n))),
    "rows of a batch": (lambda s, x: [s.one(m) for m in x], lambda n: torch.randn(n, 3, 4, 4)),
    "rows of a batch, unbound": (
        lambda s, x: [s.one(m) for m in x.unbind()],
        lambda n: torch.randn(n, 3, 4, 4),
    ),
    "values": (lambda s, d: [s.one(m) for m in d.values()], named),
    "items": (lambda s, d: {k: s.one(m) for k, m in d.items()}, named),
    "keys": (lambda s, d: {k: s.one(d[k]) for k in d}, named),
    "keys by their method": (lambda s, d: {k: s.one(d[k]) for k in d.keys()}, named),  # noqa: SIM118
    "entries of entries": (lambda s, x: [s.one(m) for m in x[0]], lambda n: [maps(n)]),
}


@pytest.mark.parametrize("case", GOING_OVER)
@pytest.mark.parametrize("n", [1, 3])
def test_another_number_of_entries_is_refused(case: str, n: int) -> None:
    f, make = GOING_OVER[case]
    model = Maps(f)
    gm = capture(model, (make(2),))
    given = make(2)
    torch.testing.assert_close(gm(given), model(given), rtol=0, atol=0)
    with pytest.raises(AssertionError, match=r"(had 2 entries|captured for 2) .*capture again"):
        gm(make(n))


def test_the_refusal_names_the_argument_and_the_line() -> None:
    gm = capture(Maps(GOING_OVER["a loop"][0]), (maps(2),))
    with pytest.raises(AssertionError, match=r"argument 'maps' had 2 entries.*test_containers\.py"):
        gm(maps(3))


def test_a_list_that_is_only_handed_on_may_have_any_length() -> None:
    model = Maps(lambda s, x: s.one(torch.cat(x)) * x[-1].mean())
    gm = capture(model, ([m[..., :4] for m in maps(2)],))
    for n in (1, 2, 4):
        given = [m[..., :4] for m in maps(n)]
        assert torch.equal(gm(given), model(given))


def test_what_is_unpacked_inside_needs_no_check() -> None:
    def body(s: Any, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 3)
        b, _, h, w = x.shape
        return s.one(left + right) / (b * h * w)

    gm = capture(Maps(body), torch.randn(2, 3, 4, 4))
    assert not [n for n in gm.graph.nodes if n.target is torch._assert]


def test_a_network_of_several_maps_shrinks_and_compiles() -> None:
    model = Maps(GOING_OVER["a loop"][0])
    lwdna.verify(model, (maps(2),))
    gm: Any = torch.compile(capture(model, (maps(2),)), backend="eager", fullgraph=True)
    torch.testing.assert_close(gm(maps(2)), model(maps(2)))
