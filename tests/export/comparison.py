"""What an exported file must agree on with its network."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import lwdna


def exported(net: nn.Module, folder: Path) -> nn.Module:
    """What the file of a network builds, with the network's values."""
    path = folder / "exported.py"
    name = lwdna.export_source(net, path)
    spec = importlib.util.spec_from_file_location(f"exported_{id(net)}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # torch.jit looks its source up
    spec.loader.exec_module(module)
    again: nn.Module = getattr(module, name)()
    assert list(again.state_dict()) == list(net.state_dict())
    again.load_state_dict(net.state_dict())
    return again


def outputs(net: nn.Module, *inputs: Any, training: bool) -> list[Any]:
    net.train(training)
    torch.manual_seed(0)
    with torch.set_grad_enabled(training):
        return tree_leaves(net(*inputs))


def same(net: nn.Module, again: nn.Module, *inputs: Any) -> None:
    """Bit-identical outputs in both modes, gradients and state after training."""
    for training in (False, True):
        found = [outputs(n, *inputs, training=training) for n in (net, again)]
        for a, b in zip(*found, strict=True):
            assert torch.equal(a, b) if isinstance(a, Tensor) else a == b
        if training and any(p.requires_grad for p in net.parameters()):
            for out in found:
                total = sum(t.float().square().mean() for t in out if isinstance(t, Tensor))
                total.backward()  # type: ignore[union-attr]
    for (name, p), (other, q) in zip(net.named_parameters(), again.named_parameters(), strict=True):
        assert name == other and p.requires_grad == q.requires_grad
        assert (p.grad is None) == (q.grad is None)
        assert p.grad is None or torch.equal(p.grad, q.grad)
    for a, b in zip(net.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def round_trip(model: nn.Module, folder: Path, *inputs: Any) -> str:
    """Export a captured model, compare, and give the text."""
    net = lwdna.capture(model, inputs)
    same(net, exported(net, folder), *inputs)
    text = (folder / "exported.py").read_text()
    assert text.isascii()
    assert not any(word in text for word in ("import lwdna", "torch.fx", "exec(", "eval("))
    return text
