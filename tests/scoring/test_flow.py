from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lwdna.errors import ScoringError
from lwdna.scoring import ScoringContext, score
from tests.scoring.networks import Net, Tokens, context_of, made


class Linears(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.fc = nn.Linear(3, 4), nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.two(torch.relu(self.one(x)))))


def absolute(network: nn.Module, name: str) -> tuple[np.ndarray, np.ndarray]:
    layer = network.get_submodule(name)
    return tuple(t.detach().abs().numpy() for t in (layer.weight, layer.bias))  # type: ignore[union-attr]


def test_synflow_of_linear_layers_by_hand() -> None:
    context = context_of(made(Linears), [], example=torch.zeros(2, 3, dtype=torch.float64))
    (w1, b1), (w2, b2), (w3, _) = (absolute(context.network, n) for n in ("one", "two", "fc"))
    ones, above = np.ones(3), w3.sum(0)
    h1 = w1 @ ones + b1
    h2 = w2 @ h1 + b2
    expected = np.zeros(context.graph.units)
    # ∂R/∂w · w of a filter: what flows into the unit through its weights, times what leaves it.
    expected[context.graph.tensors["one.weight"][0]] = (w1 @ ones) * (above @ w2)
    expected[context.graph.tensors["two.weight"][0]] = (w2 @ h1) * above
    expected[context.graph.tensors["fc.weight"][0]] = w3 @ h2
    np.testing.assert_allclose(score(context, "synflow"), expected, rtol=1e-12)


def test_synflow_of_a_convolution_by_hand() -> None:
    class Conv(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.bn = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(torch.relu(self.bn(self.one(x))).mean((2, 3)))

    model = made(Conv)
    model.bn.running_mean.fill_(-0.25)
    model.bn.running_var.fill_(4.0)
    context = context_of(model, [])
    w = context.network.get_parameter("one.weight").detach().abs().sum((1, 2, 3)).numpy()
    gain = context.network.get_parameter("bn.weight").detach().abs().numpy()
    bias = context.network.get_parameter("bn.bias").detach().abs().numpy()
    (w_fc, _), root = absolute(context.network, "fc"), np.sqrt(4 + 1e-5)
    expected = np.zeros(context.graph.units)
    # Inputs of one everywhere: every position sees the same; the running mean counts as 0.25.
    assert ((w - 0.25) / root * gain + bias > 0).all()
    expected[context.graph.tensors["one.weight"][0]] = w * gain / root * w_fc.sum(0)
    expected[context.graph.tensors["fc.weight"][0]] = w_fc @ ((w - 0.25) / root * gain + bias)
    np.testing.assert_allclose(score(context, "synflow"), expected, rtol=1e-9)


def test_synflow_conserves_the_flow() -> None:
    """Without biases, the units of each layer sum up to R."""

    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 6, 3, bias=False), nn.Conv2d(6, 4, 3, bias=False)
            self.fc = nn.Linear(4, 5, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(torch.relu(self.two(torch.relu(self.one(x)))).mean((2, 3)))

    context = context_of(made(Chain), [])
    saliency = score(context, "synflow")
    sums = [saliency[context.graph.tensors[f"{n}.weight"][0]].sum() for n in ("one", "two", "fc")]
    np.testing.assert_allclose(sums, sums[0], rtol=1e-12)


def test_synflow_needs_a_finite_flow() -> None:
    model = made(Net).double()
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1e200)
    with pytest.raises(ScoringError, match=r"'synflow': the sum of outputs .* is .*inf"):
        score(context_of(model, []), "synflow")


class NoNorm(nn.Module):
    """A residual stage, grouped and transposed convolutions; in place after convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.up, self.act = nn.ConvTranspose2d(8, 6, 2, stride=2), nn.ReLU(inplace=True)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.one(x))
        x = x + self.act(self.two(x))
        return self.fc(self.act(self.up(x)).mean((2, 3)))


def effects(context: ScoringContext, k: int) -> np.ndarray:
    """∂L_n/∂m for one mask m per unit on the outputs of its layers, sample by sample."""
    network, batch, rows = context.network.train(), context.batches[k], []
    mask = torch.ones(context.graph.units, dtype=torch.float64, requires_grad=True)
    handles = []
    for name, module in network.named_modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            transposed = isinstance(module, nn.ConvTranspose2d)
            units = context.graph.tensors[f"{name}.weight"][int(transposed)]

            def masked(m: nn.Module, args: object, out: Tensor, units: object = units) -> Tensor:
                values = mask[units]  # type: ignore[index]
                return out * (values if isinstance(m, nn.Linear) else values[:, None, None])

            handles.append(module.register_forward_hook(masked))
    for n in range(batch.size):
        loss = F.cross_entropy(network(batch.inputs[0][n : n + 1]), batch.targets[n : n + 1])
        rows.append(torch.autograd.grad(loss, mask)[0].numpy())
    for handle in handles:
        handle.remove()
    return np.stack(rows)


@pytest.mark.parametrize("model", [NoNorm, Tokens])
def test_fisher_sample_by_sample(model: type[nn.Module]) -> None:
    context = context_of(made(model, dropout=0), samples=5)
    expected = np.mean([np.square(effects(context, k)).mean(0) / 2 for k in range(2)], 0)
    actual = score(context, "fisher")
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-12 * expected.max())
    assert (actual > 0).mean() > 0.3


def test_fisher_needs_the_samples_first() -> None:
    class LengthFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.fc = nn.Linear(3, 4), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.one(x.flatten(2).permute(2, 0, 1)).mean(0))

    with pytest.raises(ScoringError, match=r"samples in the first dimension; 'one' has.*'taylor'"):
        score(context_of(made(LengthFirst)), "fisher")
