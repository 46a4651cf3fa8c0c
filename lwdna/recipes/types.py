"""What a recipe consists of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lwdna.budget import Budget
from lwdna.constraints import Constraints, Floors

Task = Literal["classification", "super-resolution", "denoising", "tracking"]
Loss = Literal["cross_entropy", "l1"]
_LOSSES: dict[Loss, Callable[..., Tensor]] = {"cross_entropy": F.cross_entropy, "l1": F.l1_loss}


@dataclass(frozen=True)
class Complexity:
    """Published cost of one network, as printed.

    Attributes:
        flops: FLOPs by the authors' counter, in 1e9.
        params: parameters, in 1e6; None where none are published.
    """

    flops: float
    params: float | None = None


@dataclass(frozen=True)
class Quality:
    """One published measurement.

    Attributes:
        dataset: what it was measured on.
        measure: ``"top-1 error"``, ``"PSNR"``, ``"precision"``, ``"normalized precision"`` or
            ``"AUC"``.
        unit: ``"%"`` or ``"dB"``.
        baseline: of the regular network.
        lwdna: of the LW-DNA network; None where our sources do not give it.
    """

    dataset: str
    measure: str
    unit: Literal["%", "dB"]
    baseline: float
    lwdna: float | None = None


@dataclass(frozen=True)
class Published:
    """The figures of one row of the paper's tables.

    Attributes:
        source: the publication.
        quality: what the networks achieve.
        baseline: cost of the regular network.
        lwdna: cost of the LW-DNA network.
        flops_ratio: the second in terms of the first, as printed (0.906 is 90.60 %).
        params_ratio: the same of the parameters.
    """

    source: str
    quality: tuple[Quality, ...]
    baseline: Complexity | None = None
    lwdna: Complexity | None = None
    flops_ratio: float | None = None
    params_ratio: float | None = None


@dataclass(frozen=True)
class Distillation:
    """Training beside a teacher: ``weight · T² · KL + (1 - weight) · cross entropy``.

    Attributes:
        weight: of the divergence from the teacher's softened outputs.
        temperature: T, by which both networks' logits are divided.
    """

    weight: float
    temperature: float


@dataclass(frozen=True)
class Protocol:
    """How the baseline, and unchanged the LW-DNA network, is trained.

    Attributes:
        source: where the settings are from.
        optimizer: SGD or Adam.
        lr: learning rate at the start.
        epochs: passes over the training set.
        schedule: cosine to zero, or steps.
        batch: images per optimiser step, over all devices.
        augmentation: crops, flips, noise, in words.
        milestones: epochs after which a step schedule multiplies the rate by ``gamma``.
        gamma: factor of a step.
        momentum: of SGD.
        weight_decay: L2 penalty of the optimiser.
        distillation: the teacher's part, if there is one.
    """

    source: str
    optimizer: Literal["sgd", "adam"]
    lr: float
    epochs: int
    schedule: Literal["cosine", "step"]
    batch: int
    augmentation: str
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0
    distillation: Distillation | None = None


@dataclass(frozen=True)
class Recipe:
    """One experiment: everything that ``lwdna.shrink`` and a training run need but the data.

    Attributes:
        name: e.g. ``"resnet50-imagenet"``.
        task: the kind of task.
        source: the network, ``"torchvision:<name>"``, ``"timm:<name>"`` or
            ``"<module>:<function>"``.
        input_shape: (C, H, W) on which the cost is counted.
        budget: for the shrunk network, against the baseline.
        floors: least widths, of the widened network.
        published: the paper's figures.
        protocol: how it is trained; None where our sources do not say.
        loss: name of the loss; None where it is the application's own.
        options: keyword arguments for building the network, as pairs.
        widen: width multiplier before the selection.
        criterion: name of the criterion.
        counter: the metric that the budget limits.
    """

    name: str
    task: Task
    source: str
    input_shape: tuple[int, int, int]
    budget: Budget
    floors: Floors
    published: Published
    protocol: Protocol | None
    loss: Loss | None
    options: tuple[tuple[str, Any], ...] = ()
    widen: float = 2.0
    criterion: str = "latent-grad"
    counter: str = "flops_paper"

    def build(self, seed: int = 0) -> nn.Module:
        """The baseline network on the CPU, in training mode, with random weights.

        Args:
            seed: of the weights; the global random state is not touched.

        Raises:
            ModuleNotFoundError: the network's module cannot be imported; those under
                ``benchmarks`` need a checkout of the repository.
        """
        library, _, network = self.source.partition(":")
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            # torch.manual_seed would also seed devices, which are not restored.
            torch.default_generator.manual_seed(seed)
            if library == "timm":
                import timm

                model: nn.Module = timm.create_model(network, pretrained=False, **self._options)
            elif library == "torchvision":
                import torchvision

                model = torchvision.models.get_model(network, weights=None, **self._options)
            else:
                model = getattr(self._module(library), network)(**self._options)
        return model

    def example_inputs(self) -> Tensor:
        """A batch of ``input_shape`` on the meta device, to trace and count costs on."""
        return torch.empty((2, *self.input_shape), device="meta")

    def loss_fn(self) -> Callable[..., Tensor] | None:
        """``loss_fn(outputs, targets)`` -> scalar; None where it is the application's own."""
        return None if self.loss is None else _LOSSES[self.loss]

    def settings(self) -> dict[str, Any]:
        """The arguments of :func:`lwdna.shrink`, all but the model, the data and the seed.

        >>> recipe = lwdna.recipes.get("dncnn-denoising")
        >>> net = lwdna.shrink(recipe.build(), data=loader, **recipe.settings())  # doctest: +SKIP
        """
        return {
            "budget": self.budget,
            "widen": self.widen,
            "criterion": self.criterion,
            "constraints": Constraints(self.floors),
            "loss_fn": self.loss_fn(),
            "example_inputs": self.example_inputs(),
        }

    @property
    def _options(self) -> dict[str, Any]:
        return dict(self.options)

    def _module(self, path: str) -> Any:
        try:
            return import_module(path)
        except ModuleNotFoundError as e:
            if e.name not in (path, path.partition(".")[0]):
                raise  # the module is there, and something that it imports is not
            raise ModuleNotFoundError(
                f"recipe {self.name!r} builds {self.source!r}, which is part of the repository, "
                "not of the installed package: run from the root of a checkout, or put that "
                "directory on PYTHONPATH",
                name=e.name,
            ) from e
