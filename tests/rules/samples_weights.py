"""Samples of computed weights, distances, and leaves of several weights; see ``samples``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.rules.samples import SEQ, Net, layer, linear, param, sample, tokens


def normalised(norm: Callable[[nn.Module], nn.Module]) -> Callable[[], nn.Module]:
    return layer(lambda: norm(nn.Conv2d(8, 8, 3, padding=1)))


WEIGHT_NORMS: dict[str, tuple[Any, str]] = {
    "hook": (nn.utils.weight_norm, "m0.weight_v"),
    "parametrization": (parametrizations.weight_norm, "m0.parametrizations.weight.original1"),
}
for note, (norm, name) in WEIGHT_NORMS.items():
    sample(
        "_weight_norm_interface",
        normalised(norm),
        prunable={"a": 8, name: 8, "b": 6},
        note=note,
    )
sample(
    "mv vdot",
    normalised(parametrizations.spectral_norm),
    prunable={"a": 8, "m0.parametrizations.weight.original": 8, "b": 6},
    note="spectral-norm",
)
sample(
    "mv dot",
    tokens(
        lambda s, x: s.a(x) * torch.dot(s.w.mv(s.u), s.v),
        8,
        a=linear(5, 8),
        w=param(8, 4),
        u=param(4),
        v=param(8),
    ),
    SEQ,
    {"a": 8, "w[1]": 4, "w[0]": 8},
)
sample(
    "_cdist_forward",
    tokens(lambda s, x: torch.cdist(s.a(x), s.d(x), p=1.0), 4, a=linear(5, 8), d=linear(5, 8)),
    SEQ,
    {"a": 8},
)

sample(
    "_trilinear",
    tokens(
        lambda s, x: s.w(s.a(x), s.d(x)),
        6,
        a=linear(5, 8),
        d=linear(5, 4),
        w=lambda: nn.Bilinear(8, 4, 6),
    ),
    SEQ,
    {"a": 8, "d": 4, "w.weight[0]": 6},
)

# --- weights of batched products ---

sample(
    "einsum",
    tokens(lambda s, x: torch.einsum("bnc,cd->bnd", s.a(x), s.w), 6, a=linear(5, 8), w=param(8, 6)),
    SEQ,
    {"a": 8, "w": 6},
    note="einsum-weight",
)
sample(
    "einsum",
    tokens(lambda s, x: torch.einsum("oc,bnc->bno", s.w, s.a(x)), 6, a=linear(5, 8), w=param(6, 8)),
    SEQ,
    {"a": 8, "w": 6},
    note="einsum-weight-first",
)

# --- buffers of truth values ---


class Masked(nn.Module):
    """A fixed mask over the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.arange(8).view(8, 1, 1) % 3 == 0)

    def forward(self, x: Tensor) -> Tensor:
        return x.masked_fill(self.mask, 0.5)


sample("convolution", layer(Masked), note="mask-over-channels")

# --- recurrent cells ---


def rolled_out(s: Any, x: Tensor) -> Tensor:
    x = s.a(x)
    state = x.new_zeros(x.shape[0], 6)
    state = (state, torch.zeros_like(state)) if isinstance(s.cell, nn.LSTMCell) else state
    for k in range(x.shape[1]):
        state = s.cell(x[:, k], state)
    return s.o(state[0] if isinstance(state, tuple) else state)


for cell, name in {
    nn.LSTMCell: "weight_hh",
    nn.GRUCell: "weight_ih",
    nn.RNNCell: "weight_hh",
}.items():
    sample(
        "linear",
        lambda cell=cell: Net(rolled_out, a=nn.Linear(5, 8), cell=cell(8, 6), o=nn.Linear(6, 4)),
        SEQ,
        {"a": 8, f"cell.{name}": 6},
        note=cell.__name__,
    )
sample(
    "linear",
    tokens(
        lambda s, x: s.l(s.a(x))[0],
        8,
        a=linear(5, 8),
        l=lambda: nn.LSTM(8, 6, 2, batch_first=True, proj_size=4, bidirectional=True),
    ),
    SEQ,
    {"a": 8, "l.weight_hr_l0": 4, "l.weight_ih_l0": 6},
    note="projected-LSTM",
)
