"""Groups of published architectures: the pattern that each stands for, with widths and slots.

Analysed on the meta device; that the groups of each pattern are right numerically is shown on the
small networks of the other files of this name.
"""

from __future__ import annotations

from functools import cache

import pytest
import timm
import torch

from benchmarks.networks import build_on_meta
from lwdna.fx_passes.analyse import analyse
from lwdna.fx_passes.capture import capture
from lwdna.graph import ChannelGraph
from tests.quality import described


@cache
def graph_of(name: str, policy: str) -> ChannelGraph:
    model, size = build_on_meta(name if ":" in name else f"timm:{name}")
    x = torch.empty(2, *size, device="meta")
    return analyse(capture(model, x), x, policy=policy)


def written(group: str) -> tuple[int, str]:
    width, _, slots = group.partition(": ")
    return int(width), slots


#: model, policy, then group name -> "width: slots".
GROUPS: list[tuple[str, str, dict[str, str]]] = [
    ("seresnet18", "auto", {"layer4.1.se.fc1": "32: layer4.1.se.fc1[0] layer4.1.se.fc2[1]"}),
    (
        "eca_resnet33ts",
        "auto",
        {
            "stages.0.0.conv3_1x1.conv": (
                "256: stages.0.0.conv3_1x1.conv[0] stages.0.0.conv3_1x1.bn[0] "
                "stages.0.0.shortcut.conv[0] stages.0.0.shortcut.bn[0] "
                "stages.0.1.conv1_1x1.conv[1] stages.0.1.conv3_1x1.conv[0] "
                "stages.0.1.conv3_1x1.bn[0] stages.1.0.conv1_1x1.conv[1] "
                "stages.1.0.shortcut.conv[1]"
            )
        },
    ),
    (  # radix 2
        "resnest14d",
        "auto",
        {
            "layer1.0.conv1": "32: layer1.0.conv1[0]*2 layer1.0.bn1[0]*2 layer1.0.conv2.conv[1]",
            "layer1.0.conv2.conv": (
                "64: layer1.0.conv2.conv[0]*2 layer1.0.conv2.bn0[0]*2 layer1.0.conv2.fc1[1] "
                "layer1.0.conv2.fc2[0]*2 layer1.0.conv3[1]"
            ),
        },
    ),
    (
        "torchvision:shufflenet_v2_x0_5",
        "auto",
        {
            "stage4.3.branch2.0": (
                "96: stage4.3.branch2.0[0] stage4.3.branch2.1[0] stage4.3.branch2.3[0] "
                "stage4.3.branch2.4[0] stage4.3.branch2.5[1]"
            )
        },
    ),
    (
        "densenet121",
        "auto",
        {
            "features.denseblock4.denselayer15.conv2": (
                "32: features.denseblock4.denselayer15.conv2[0] "
                "features.denseblock4.denselayer16.norm1[0] "
                "features.denseblock4.denselayer16.conv1[1] features.norm5[0] classifier[1]"
            )
        },
    ),
    (  # 46 groups of 8
        "regnetx_002",
        "outer",
        {
            "s4.b2.conv1.conv": (
                "46: s4.b2.conv1.conv[0]*8 s4.b2.conv1.bn[0]*8 s4.b2.conv2.conv[0]*8 "
                "s4.b2.conv2.bn[0]*8 s4.b2.conv3.conv[1]*8"
            )
        },
    ),
    (
        "regnetx_002",
        "inner",
        {
            "s4.b2.conv1.conv": (
                "8: s4.b2.conv1.conv[0]*46 s4.b2.conv1.bn[0]*46 s4.b2.conv2.conv[1]"
            ),
            "s4.b2.conv2.conv": (
                "8: s4.b2.conv2.conv[0]*46 s4.b2.conv2.bn[0]*46 s4.b2.conv3.conv[1]*46"
            ),
        },
    ),
    (  # 32 groups of 2, weights standardised
        "resnetv2_50x1_bit",
        "auto",
        {
            "stages.0.blocks.0.conv1": (
                "32: stages.0.blocks.0.conv1[0]*2 stages.0.blocks.0.norm2[0]*2 "
                "stages.0.blocks.0.conv2[1]*2"
            )
        },
    ),
    (
        "resnetv2_50d_evos",
        "auto",
        {
            "stages.0.blocks.0.conv1": (
                "32: stages.0.blocks.0.conv1[0]*2 stages.0.blocks.0.norm2.v[0]*2 "
                "stages.0.blocks.0.norm2[0]*2 stages.0.blocks.0.conv2[1]*2"
            )
        },
    ),
    (
        "resnetv2_50d_frn",
        "auto",
        {
            "stages.0.blocks.0.conv1": (
                "64: stages.0.blocks.0.conv1[0] stages.0.blocks.0.norm2[0] "
                "stages.0.blocks.0.norm2.tau[0] stages.0.blocks.0.conv2[1]"
            )
        },
    ),
    (
        "test_nfnet",
        "auto",
        {"stages.0.0.conv1": "8: stages.0.0.conv1[0] stages.0.0.conv1.gain[0] stages.0.0.conv2[1]"},
    ),
    (
        "convnextv2_atto",
        "auto",
        {
            "stages.3.blocks.1.mlp.fc1": (
                "1280: stages.3.blocks.1.mlp.fc1[0] stages.3.blocks.1.mlp.grn[0] "
                "stages.3.blocks.1.mlp.fc2[1]"
            )
        },
    ),
    (  # blur pool before a stride
        "resnetblur50",
        "auto",
        {"layer2.0.conv2": "128: layer2.0.conv2[0] layer2.0.bn2[0] layer2.0.conv3[1]"},
    ),
    (  # kernels mixed from experts
        "efficientnet_cc_b0_4e",
        "auto",
        {
            "blocks.1.1.conv_pw": (
                "144: blocks.1.1.conv_pw[0] blocks.1.1.bn1[0] blocks.1.1.conv_dw[0] "
                "blocks.1.1.bn2[0] blocks.1.1.se.conv_reduce[1] blocks.1.1.se.conv_expand[0] "
                "blocks.1.1.conv_pwl[1]"
            )
        },
    ),
    (
        "test_vit",
        "outer",
        {"blocks.0.attn.qkv": "2: blocks.0.attn.qkv[0]*96 blocks.0.attn.proj[1]*32"},
    ),
    (
        "test_vit",
        "inner",
        {"blocks.0.attn.qkv": "32: blocks.0.attn.qkv[0]*6 blocks.0.attn.proj[1]*2"},
    ),
    (  # talking heads
        "cait_xxs24_224",
        "outer",
        {
            "blocks.0.attn.qkv": (
                "4: blocks.0.attn.qkv[0]*144 blocks.0.attn.proj_l[1] blocks.0.attn.proj_w[0] "
                "blocks.0.attn.proj[1]*48"
            ),
            "blocks.0.attn.proj_l": "4: blocks.0.attn.proj_l[0] blocks.0.attn.proj_w[1]",
        },
    ),
    (
        "swin_tiny_patch4_window7_224",
        "outer",
        {
            "layers.0.blocks.0.attn.qkv": (
                "3: layers.0.blocks.0.attn.qkv[0]*96 "
                "layers.0.blocks.0.attn.relative_position_bias_table[1] "
                "layers.0.blocks.0.attn.proj[1]*32"
            )
        },
    ),
    (  # one key for all heads
        "mobilenetv4_hybrid_medium",
        "outer",
        {
            "blocks.2.4.attn.query.proj": (
                "4: blocks.2.4.attn.query.proj[0]*64 blocks.2.4.attn.output.proj[1]*64"
            )
        },
    ),
    (
        "mobilenetv4_hybrid_medium",
        "inner",
        {
            "blocks.2.4.attn.query.proj": (
                "64: blocks.2.4.attn.query.proj[0]*4 blocks.2.4.attn.key.proj[0]"
            ),
            "blocks.2.4.attn.value.proj": (
                "64: blocks.2.4.attn.value.proj[0] blocks.2.4.attn.output.proj[1]*4"
            ),
        },
    ),
    (
        "mixer_s32_224",
        "auto",
        {"blocks.0.mlp_tokens.fc1": ("256: blocks.0.mlp_tokens.fc1[0] blocks.0.mlp_tokens.fc2[1]")},
    ),
]


@pytest.mark.parametrize(
    ("name", "policy", "expected"), GROUPS, ids=[f"{name}-{policy}" for name, policy, _ in GROUPS]
)
def test_published_architectures(name: str, policy: str, expected: dict[str, str]) -> None:
    found = described(graph_of(name, policy))
    for group, text in expected.items():
        assert found[group] == written(text)


def slots_of(graph: ChannelGraph, name: str) -> tuple[int, set[str]]:
    width, slots = described(graph)[name]
    return width, set(slots.split())


def test_a_resolution_of_hrnet_is_one_width_through_all_fusions() -> None:
    width, slots = slots_of(graph_of("hrnet_w18_small", "auto"), "transition1.0.0")
    assert width == 16
    for stage in (2, 3, 4):
        assert f"stage{stage}.0.branches.0.0.conv1[1]" in slots
        assert f"stage{stage}.0.fuse_layers.0.1.0[0]" in slots  # what is added to this branch
        assert f"stage{stage}.0.fuse_layers.1.0.0.0[1]" in slots  # what it gives to the next


def test_layer_scale_and_position_embedding_belong_to_the_stream() -> None:
    width, slots = slots_of(graph_of("cait_xxs24_224", "outer"), "patch_embed.proj")
    assert width == 192
    assert {"pos_embed[2]", "blocks.0.gamma_1[0]", "blocks.23.gamma_2[0]"} <= slots


def test_a_bidirectional_recurrence_is_one_width() -> None:
    rnn = "stages.0.blocks.0.rnn_tokens"
    graph = graph_of("sequencer2d_s", "auto")
    width, slots = slots_of(graph, f"{rnn}.rnn_h.weight_ih_l0")
    assert width == 48
    assert {
        f"{rnn}.rnn_h.weight_hh_l0[1]",
        f"{rnn}.rnn_h.weight_hh_l0_reverse[1]",
        f"{rnn}.fc[1]*2",
    } <= slots


def test_a_rotary_table_of_all_blocks_gives_them_one_head_width() -> None:
    width, slots = slots_of(graph_of("eva02_tiny_patch14_224", "inner"), "blocks.0.attn.qkv")
    assert width == 32  # pairs of entries
    assert {"blocks.0.attn.qkv[0]*18", "blocks.11.attn.qkv[0]*18"} <= slots


BRANCH = {"repvgg_a0": "conv_kxk.conv", "mobileone_s0": "conv_kxk.3.conv"}


@pytest.mark.parametrize("name", BRANCH)
def test_branches_share_a_width_before_and_after_they_are_merged(name: str) -> None:
    block, branch = "stages.1.1", BRANCH[name]
    before = described(graph_of(name, "auto"))
    model = timm.utils.reparameterize_model(timm.create_model(name).eval())
    x = torch.zeros(1, 3, 224, 224)
    after = described(analyse(capture(model, x), x))
    assert width_at(after, f"{block}.reparam_conv[0]") == width_at(before, f"{block}.{branch}[0]")


def width_at(groups: dict[str, tuple[int, str]], slot: str) -> int:
    """Width of the group that has a slot."""
    return next(width for width, slots in groups.values() if slot in slots.split())
