"""The networks that are trained: where they come from, and how they are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import lwdna
from lwdna.errors import DnaError, SourceError, TrainingError
from lwdna.files import DNA
from lwdna.fx_passes.regions import is_captured, meta_of
from lwdna.source import build, source_of
from lwdna.training.protocol import Protocol


@dataclass(frozen=True)
class Keepsake:
    """How a network will be saved after training, found out before it.

    Attributes:
        name: of the network, and whether it was shrunk.
        dna: its own; of a baseline the DNA that changes nothing.
        baseline: whether it is one.
    """

    name: str
    dna: lwdna.Dna
    baseline: bool

    @property
    def cost(self) -> Mapping[str, int]:
        """Of the network, as :class:`lwdna.Cost` has it."""
        return asdict(self.dna.after)

    def save(self, model: nn.Module, path: Path) -> None:
        """Save the trained network; :func:`lwdna.load` reads it.

        Args:
            model: the network; not changed.
            path: directory.
        """
        model = deepcopy(model).to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        if self.baseline:
            model = lwdna.rebuild(model, self.dna, weights="inherit")
        lwdna.save(model, path)


def keepsake(model: nn.Module, protocol: Protocol) -> Keepsake:
    """Make sure that a network can be saved.

    Args:
        model: a shrunk network, or a baseline whose constructor is known.
        protocol: tells the size of its inputs.

    Raises:
        SourceError: nothing tells how the network is constructed.
        LwdnaError: a baseline that cannot be captured.
    """
    if is_captured(model):
        dna = meta_of(model).get("lwdna")
        if not isinstance(dna, lwdna.Dna) or dna.source is None:
            raise SourceError(_UNKNOWN.format(type(model).__name__))
        return Keepsake(f"{dna.source}, shrunk", dna, baseline=False)
    source = source_of(model)
    if source is None:
        raise SourceError(_UNKNOWN.format(type(model).__name__))
    same = lwdna.shrink(
        model,
        lwdna.Budget(macs=1.0),
        widen=1.0,
        criterion="random",
        weights="inherit",
        example_inputs=example_inputs(protocol),
        progress=False,
    )
    return Keepsake(str(source), meta_of(same)["lwdna"], baseline=True)


_UNKNOWN = (
    "this {} cannot be saved, since nothing tells how it is constructed: build it by "
    "lwdna.create('library:name', ...), or pass output=None"
)


def example_inputs(protocol: Protocol) -> torch.Tensor:
    """An input of the protocol's size, without values."""
    if protocol.images is not None:
        shape = (len(protocol.images.mean), protocol.images.size, protocol.images.size)
    else:
        assert protocol.patches is not None
        side = protocol.patches.size // protocol.patches.scale
        shape = (protocol.patches.channels, side, side)
    return torch.empty((1, *shape), device="meta")


def open_network(
    name: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    trust: Sequence[str] = (),
) -> nn.Module:
    """A network by what it is called on the command line.

    Args:
        name: ``"timm:NAME"``, ``"torchvision:NAME"`` or ``"package.module:factory"``, built afresh;
            the path of a ``.json`` file with a DNA, whose network is built with fresh weights; or
            a directory with a saved network, or a finished run, which is loaded as it is.
        arguments: of the constructor.
        seed: of fresh weights; the global random state is not touched.
        trust: see :func:`lwdna.load`. The module of a factory that is named here is trusted.

    Raises:
        SourceError, DnaError: see :func:`lwdna.create` and :func:`lwdna.load`.
        TrainingError: arguments for a network that has its own.
    """
    path = Path(name)
    if not (path.is_dir() or path.suffix == ".json"):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return lwdna.create(name, **(arguments or {}))
    if arguments:
        raise TrainingError(f"{name} has its arguments: leave out {', '.join(sorted(arguments))}")
    if path.is_dir():
        return lwdna.load(path if (path / DNA).exists() else path / "network", trust=trust)
    return _rebuilt(path, seed, trust)


def _rebuilt(path: Path, seed: int, trust: Sequence[str]) -> nn.Module:
    try:
        dna = lwdna.Dna.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError) as e:
        raise DnaError(f"{path} cannot be read: {e}") from e
    if dna.source is None:
        raise SourceError(f"{path} does not tell how its {dna.model} is constructed")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = build(dna.source, trust=trust)
    return lwdna.rebuild(model, replace(dna, seed=seed), weights="fresh")
