"""Networks that a command line names, and inputs for them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

from lwdna.dna import Dna
from lwdna.errors import CaptureError, SourceError
from lwdna.files import load
from lwdna.fx_passes.capture import capture
from lwdna.fx_passes.regions import is_captured
from lwdna.inputs import default_inputs
from lwdna.rebuilding import dna_of
from lwdna.source import build, create, parted, without_values

#: Libraries whose constructors run without being trusted by name.
ZOOS = ("timm", "torchvision")


def constructed(
    name: str, arguments: dict[str, Any], *, values: bool = True, seed: int = 0
) -> nn.Module:
    """A network from its constructor.

    Args:
        name: ``"library:name"``. A module is looked for in the current directory, too.
        arguments: of the constructor.
        values: ``False`` for a network on the meta device, where nothing is drawn or downloaded.
        seed: of the values.

    Raises:
        SourceError: there is no such constructor, or it fails.
    """
    look_here(name.partition(":")[:1])
    if values:
        torch.manual_seed(seed)
        return create(name, **arguments)
    source, _ = parted(name, arguments)
    return without_values(lambda: build(source, trust=(source.library,)))


def network(
    name: str,
    arguments: dict[str, Any],
    *,
    trust: Sequence[str] = (),
    values: bool = True,
    seed: int = 0,
) -> nn.Module:
    """A network from its constructor, or one that was saved.

    Args:
        name: ``"library:name"``, or a directory.
        arguments: of the constructor.
        trust: see :func:`lwdna.load`.
        values: as for :func:`constructed`; a saved network has its own.
        seed: of the values.

    Raises:
        click.UsageError: neither, or arguments for a network that is built already.
        SourceError: see :func:`constructed`.
        DnaError: see :func:`lwdna.load`.
    """
    if Path(name).is_dir():
        check_built(name, arguments)
        return saved(name, trust)
    check_constructor(name)
    return constructed(name, arguments, values=values, seed=seed)


def of_dna(dna: Dna, arguments: dict[str, Any], trust: Sequence[str]) -> nn.Module:
    """The model that a DNA was found on, with values drawn by the DNA's seed.

    Args:
        dna: names the constructor.
        arguments: of the constructor, besides those in the DNA.
        trust: see :func:`lwdna.load`.

    Raises:
        SourceError: the constructor is not known, not trusted, or fails.
    """
    if dna.source is None:
        raise SourceError(f"the DNA does not tell how its {dna.model} is constructed")
    name = f"{dna.source.library}:{dna.source.name}"
    source, loading = parted(name, {**dna.source.arguments, **arguments})
    torch.manual_seed(dna.seed)
    return build(source, trust=trust, **loading)


def saved(path: str | Path, trust: Sequence[str] = ()) -> nn.Module:
    """A network that was saved; see :func:`lwdna.load`."""
    look_here(trust)
    return load(path, trust=trust)


def check_built(name: str, arguments: dict[str, Any], option: str = "--arg") -> None:
    """Refuse arguments of a constructor for what has its own.

    Args:
        name: of the network.
        arguments: that were given.
        option: by which.

    Raises:
        click.UsageError: there are some.
    """
    if arguments:
        raise click.UsageError(f"{option}: {name} says already how its network is built")


def check_constructor(name: str) -> None:
    """Refuse what is no constructor.

    Raises:
        click.UsageError: says what is.
    """
    if ":" not in name:
        raise click.UsageError(
            f"{name!r} names no model: write timm:NAME, torchvision:NAME, package.module:FACTORY, "
            "or a directory that lwdna saved"
        )


def check_device(device: str | None) -> None:
    """Refuse a device that is not there.

    Nothing is put on it: under torchrun each process has one of its own.

    Args:
        device: as PyTorch writes it; ``None`` leaves the choice to the library.

    Raises:
        click.UsageError: says what PyTorch says, or how many there are.
    """
    if device is None:
        return
    try:
        wanted = torch.device(device)
        count = torch.get_device_module(wanted).device_count()
    except (RuntimeError, AttributeError) as e:
        raise click.UsageError(f"--device {device}: {e}") from e
    if (wanted.index or 0) >= count:
        raise click.UsageError(f"--device {device}: PyTorch finds {count} of this kind")


def look_here(modules: Sequence[str]) -> None:
    """Find modules in the current directory, too, after all that is installed.

    Args:
        modules: that a command line names; where there is none of the user's, nothing changes.
    """
    here = os.getcwd()
    if set(modules) - set(ZOOS) and here not in sys.path:
        sys.path.append(here)


def example(
    net: nn.Module, shapes: Sequence[tuple[int, ...]], *, batch: int = 2, seed: int | None = None
) -> tuple[Tensor, ...]:
    """Example inputs of a network.

    Args:
        net: the network.
        shapes: of the inputs, without the batch; by default those of a saved network's DNA, or of
            the model's configuration.
        batch: number of samples.
        seed: of standard normal values; ``None`` for tensors without values, on the meta device.

    Returns:
        Positional arguments of ``forward``.
    """
    if not shapes:
        found = [t[1:] for t in dna_of(net).input_shapes] if is_captured(net) else []
        shapes = found or [tuple(default_inputs(net).shape[1:])]
    if seed is None:
        return tuple(torch.empty(batch, *shape, device="meta") for shape in shapes)
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, *shape, generator=generator) for shape in shapes)


def captured(net: nn.Module, inputs: Sequence[Tensor]) -> nn.Module:
    """:func:`lwdna.capture`, whose errors say what a command line can do about it."""
    try:
        return capture(net, tuple(inputs))
    except CaptureError as e:
        shapes = ", ".join("x".join(map(str, t.shape[1:])) for t in inputs)
        raise CaptureError(
            f"captured on an input of {shapes} (--input gives another; what takes lists of images, "
            f"as detectors do, needs lwdna.capture in Python): {e}"
        ) from e
