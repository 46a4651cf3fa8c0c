"""The groups of token mixing, recurrence and state spaces; what the scale of attention means."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lwdna.fx_passes.capture import capture
from lwdna.fx_passes.resize import resize
from tests.quality import check, image, param, sequence
from tests.rules.samples import Net

Linear = nn.Linear


def sequencer(s: Any, x: Tensor) -> Tensor:
    x = s.stem(x).permute(0, 2, 3, 1)
    batch, height, width, channels = x.shape
    rows = s.rows(x.reshape(-1, width, channels))[0].view(batch, height, width, -1)
    return s.head((x + s.fc(rows)).mean((1, 2)))


def mixer(s: Any, x: Tensor) -> Tensor:
    x = s.stem(x)
    x = x + s.t2(F.gelu(s.t1(s.n1(x).transpose(1, 2)))).transpose(1, 2)
    return s.head((x + s.c2(F.gelu(s.c1(s.n2(x))))).mean(1))


def state_space(s: Any, x: Tensor) -> Tensor:
    """Mamba: inner channels, states and the rank of the step are widths."""
    x = s.stem(x)
    u, z = s.inp(x).chunk(2, -1)
    u = F.silu(s.conv(u.transpose(1, 2))[..., : x.shape[1]]).transpose(1, 2)
    step, b, c = s.select(u).split([3, 4, 4], -1)
    step = F.softplus(s.step(step)).unsqueeze(-1)
    decay, drive = (step * -s.log_a.exp()).exp(), step * b.unsqueeze(2) * u.unsqueeze(-1)
    state, outputs = torch.zeros_like(drive[:, 0]), []
    for t in range(x.shape[1]):
        state = decay[:, t] * state + drive[:, t]
        outputs.append((state * c[:, t].unsqueeze(1)).sum(-1))
    y = torch.stack(outputs, 1) + u * s.d
    return s.head(x + s.out(y * F.silu(z)))


def test_both_directions_of_a_recurrence_share_their_width() -> None:
    torch.manual_seed(0)
    net = Net(
        sequencer,
        stem=nn.Conv2d(3, 10, 1),
        rows=nn.LSTM(10, 6, batch_first=True, bidirectional=True),
        fc=Linear(12, 10),
        head=Linear(10, 4),
    )
    check(
        net,
        image(),
        {
            "stem": (
                10,
                "stem[0] rows.weight_ih_l0[1] rows.weight_ih_l0_reverse[1] fc[0] head[1]",
            ),
            "rows.weight_ih_l0": (
                6,
                "rows.weight_ih_l0[0]*4 rows.bias_ih_l0[0]*4 rows.weight_hh_l0[0]*4 "
                "rows.weight_hh_l0[1] rows.bias_hh_l0[0]*4 rows.weight_ih_l0_reverse[0]*4 "
                "rows.bias_ih_l0_reverse[0]*4 rows.weight_hh_l0_reverse[0]*4 "
                "rows.weight_hh_l0_reverse[1] rows.bias_hh_l0_reverse[0]*4 fc[1]*2",
            ),
        },
    )


def test_tokens_are_positions_and_hidden_tokens_are_a_width() -> None:
    torch.manual_seed(0)
    net = Net(
        mixer,
        stem=Linear(5, 10),
        n1=nn.LayerNorm(10),
        t1=Linear(6, 7),
        t2=Linear(7, 6),
        n2=nn.LayerNorm(10),
        c1=Linear(10, 20),
        c2=Linear(20, 10),
        head=Linear(10, 4),
    )
    check(
        net,
        sequence(),
        {
            "stem": (10, "stem[0] n1[0] n2[0] c1[1] c2[0] head[1]"),
            "t1": (7, "t1[0] t2[1]"),
            "c1": (20, "c1[0] c2[1]"),
        },
    )


def test_a_state_space_has_inner_channels_states_and_a_rank() -> None:
    torch.manual_seed(0)
    net = Net(
        state_space,
        stem=Linear(5, 10),
        inp=Linear(10, 32),
        conv=nn.Conv1d(16, 16, 4, padding=3, groups=16),
        select=Linear(16, 11),
        step=Linear(3, 16),
        log_a=param(16, 4),
        d=param(16),
        out=Linear(16, 10),
        head=Linear(10, 4),
    )
    check(
        net,
        sequence(),
        {
            "stem": (10, "stem[0] inp[1] out[0] head[1]"),
            "inp": (16, "inp[0]*2 conv[0] select[1] step[0] log_a[0] d[0] out[1]"),
            "select": (3, "select[0] step[1]"),
            "select#2": (4, "select[0]*2 log_a[1]"),
        },
    )


def scored(how: str):
    """Attention whose scale is implicit, computed from a shape, or a number of its own."""

    def body(s: Any, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unsqueeze(1) for layer in (s.q, s.k, s.v))
        if how == "implicit":
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            scale = q.shape[-1] ** -0.5 if how == "shape" else 16**-0.5
            y = ((q * scale) @ k.transpose(-2, -1)).softmax(-1) @ v
        return s.head(y.squeeze(1))

    return Net(body, q=Linear(5, 16), k=Linear(5, 16), v=Linear(5, 8), head=Linear(8, 4))


@pytest.mark.parametrize("how", ["implicit", "shape", "number"])
def test_the_scale_of_attention_keeps_its_value_however_it_is_written(how: str) -> None:
    """Three spellings of one network stay one network: removing entries removes products."""
    torch.manual_seed(0)
    net, x = scored(how), sequence()
    graph = check(net, x, {"q": (16, "q[0] k[0]"), "v": (8, "v[0] head[1]")})
    copies = graph.keep_all()
    copies[next(g for g in graph.groups if g.name == "q").units[4:]] = 0
    small = resize(capture(net, x), graph, copies)
    q, k, v = (layer(x) for layer in (small.q, small.k, small.v))
    expected = small.head((q @ k.transpose(1, 2) * 16**-0.5).softmax(-1) @ v)
    torch.testing.assert_close(small(x), expected)
