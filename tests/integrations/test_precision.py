"""Memory formats, mixed precision and quantisation-aware training."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import lwdna
from tests.integrations.networks import close, each, images, loss_of, original, shrunk


@each
def test_channels_last(name: str) -> None:
    net, plain = shrunk(name).eval(), shrunk(name).eval()
    net.to(memory_format=torch.channels_last)
    x = images().contiguous(memory_format=torch.channels_last)
    formats = []
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _, __, out: formats.append(out))
    close(net(x), plain(images()))
    assert all(out.is_contiguous(memory_format=torch.channels_last) for out in formats)
    for p, q in zip(net.parameters(), plain.parameters(), strict=True):
        p.grad = q.grad = None
    net(x).square().mean().backward()
    plain(images()).square().mean().backward()
    close([p.grad for p in net.parameters()], [p.grad for p in plain.parameters()])


@each
def test_a_network_in_channels_last_gives_one(name: str) -> None:
    model = original(name).to(memory_format=torch.channels_last)
    net = lwdna.shrink(model, 0.7, criterion="random", example_inputs=images(), progress=False)
    own = [
        m.weight for m in net.modules() if isinstance(m, nn.Conv2d) and m.weight[0, 0].numel() > 1
    ]
    assert own and all(w.is_contiguous(memory_format=torch.channels_last) for w in own)


@each
def test_mixed_precision_is_that_of_the_original(name: str) -> None:
    """Captured with all its channels, the network rounds where the original does."""
    model = original(name)
    captured = lwdna.capture(model, images())
    results = []
    for network in (model, captured):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16):
            out = network(images())
        assert out.dtype == torch.bfloat16
        results.append(
            (out, *torch.autograd.grad(out.float().square().mean(), network.parameters()))
        )
    for expected, found in zip(*results, strict=True):
        assert torch.equal(found, expected)


@each
def test_a_step_in_mixed_precision(name: str) -> None:
    net = shrunk(name)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(net)
    loss.backward()
    for parameter, p in net.named_parameters():
        assert p.grad.dtype == torch.float32 and p.grad.isfinite().all(), parameter


@each
def test_a_network_in_bfloat16(name: str) -> None:
    net = shrunk(name).eval()
    low = copy.deepcopy(net).to(torch.bfloat16)
    with torch.no_grad():
        out, expected = low(images().to(torch.bfloat16)), net(images())
    assert out.dtype == torch.bfloat16
    close(out.float(), expected, rtol=0.1, atol=0.1 * float(expected.abs().max()))


# --- quantisation-aware training ---


def test_torchao_trains_linear_layers_through_fake_quantisers() -> None:
    """The whole network is trained; its linear layers see rounded weights and activations."""
    from torchao import quantization
    from torchao.quantization import qat

    net = shrunk("vit")
    plain = net.eval()(images()).detach()
    config = qat.QATConfig(
        activation_config=qat.IntxFakeQuantizeConfig(torch.int8, "per_token", is_symmetric=False),
        weight_config=qat.IntxFakeQuantizeConfig(torch.int8, "per_channel", is_symmetric=True),
        step="prepare",
    )
    names = {n for n, m in net.named_modules() if isinstance(m, nn.Linear)}
    quantization.quantize_(net, config)
    fake = {n for n, m in net.named_modules() if type(m).__name__ == "FakeQuantizedLinear"}
    assert fake == names
    rounded = net(images())
    assert not torch.equal(rounded, plain)
    close(rounded, plain, rtol=0, atol=0.1 * float(plain.abs().max()))
    loss_of(net.train()).backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())
    quantization.quantize_(net, qat.QATConfig(step="convert"))
    assert names == {n for n, m in net.named_modules() if type(m) is nn.Linear}


@pytest.mark.slow  # half a minute each
@pytest.mark.parametrize("name", ["resnet", "mobilenet"])
def test_torchao_trains_convolutions_of_an_exported_network(name: str) -> None:
    """Convolutions and their batch norms, in the graph that torch.export makes of the network."""
    from torchao.quantization import pt2e
    from torchao.quantization.pt2e import quantize_pt2e as steps
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    net = shrunk(name)
    module = torch.export.export(net.train(), (images(),)).module()
    quantizer = x86.X86InductorQuantizer().set_global(
        x86.get_default_x86_inductor_quantization_config(is_qat=True)
    )
    prepared = steps.prepare_qat_pt2e(module, quantizer)
    optimizer = torch.optim.SGD(prepared.parameters(), 1e-3)
    loss_of(prepared).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in prepared.parameters())
    optimizer.step()
    pt2e.move_exported_model_to_eval(prepared)
    trained: Tensor = prepared(images()).detach()
    converted = steps.convert_pt2e(prepared)
    assert any("quantize" in str(node.target) for node in converted.graph.nodes)
    close(converted(images()), trained, rtol=0, atol=0.1 * float(trained.abs().max()))
