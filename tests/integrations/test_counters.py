"""What other counters make of a shrunk network, and where their conventions differ from ours."""

from __future__ import annotations

from math import prod
from typing import Any

from fvcore.nn import FlopCountAnalysis, parameter_count
from fvcore.nn.jit_handles import get_shape
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchinfo import summary

from tests.integrations.networks import each, images, shrunk

#: Operators whose multiply-accumulates are our ``macs``, by fvcore's names.
PRODUCTS = ("addmm", "attention", "bmm", "conv", "einsum", "linear", "matmul")


def attention_macs(inputs: Any, _: Any) -> Any:
    """fvcore has no handle for fused attention: queries times keys, and weights times values."""
    q, k, v = (get_shape(tensor) for tensor in inputs[:3])
    return {"attention": prod(q[:-1]) * k[-2] * (q[-1] + v[-1])}


@each
def test_torch_counts_twice_the_macs(name: str) -> None:
    net = shrunk(name).eval().to("meta")  # torch 2.11 leaves the CPU's own fused attention out
    with FlopCounterMode(display=False) as counter:
        net(images(1).to("meta"))
    assert counter.get_total_flops() == 2 * net.meta["lwdna"].after.macs


@each
def test_fvcore_counts_the_same_macs(name: str) -> None:
    net = shrunk(name).eval()
    cost = net.meta["lwdna"].after
    counted = FlopCountAnalysis(net, images(1)).unsupported_ops_warnings(False)
    counted.set_op_handle("aten::scaled_dot_product_attention", attention_macs)
    found = counted.by_operator()
    assert sum(found[product] for product in PRODUCTS) == cost.macs
    assert parameter_count(net)[""] == cost.params
    by_layer = counted.by_module()
    assert (
        sum(by_layer[n] for n, m in net.named_modules() if isinstance(m, nn.Conv2d))
        == (found["conv"])
    )


@each
def test_torchinfo_counts_parameters_and_its_own_multiplications(name: str) -> None:
    """It multiplies every parameter of a layer by the number of output positions.

    So biases and norms count, too; linear layers count once per sample, not once per token, and
    products of two activations not at all.
    """
    net = shrunk(name).eval()
    cost = net.meta["lwdna"].after
    found = summary(net, input_data=images(1), verbose=0)
    assert found.total_params == cost.params
    if name == "vit":
        assert found.total_mult_adds < cost.macs
        return
    ours = 0
    for layer in found.summary_list:
        if isinstance(layer.module, (nn.Conv2d, nn.Linear)):
            positions = prod(layer.output_size[2:])
            ours += layer.module.weight.numel() * positions
    assert ours == cost.macs
