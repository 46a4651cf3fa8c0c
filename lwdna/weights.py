"""The values of a network as a safetensors file, with all that makes them its own again.

Beside the tensors stand, in the file's metadata, the modes of the modules, which parameters are
fixed, the order in memory of tensors that are not contiguous, and two SHA-256 sums: of the DNA that
the values belong to, and of everything. They tell damage; against forgery nothing but a signature
would help, and a forged file can put wrong numbers into a network, but never runs code.

Source: https://huggingface.co/docs/safetensors (format; shared tensors are stored once).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lwdna.errors import DnaError
from lwdna.fx_passes.likeness import first_names, named_tensors
from lwdna.fx_passes.module import copy_with
from lwdna.strict_json import build, digest, parse

VERSION = 1
_KEY = "lwdna"


@dataclass(frozen=True)
class State:
    """What a network is beside its DNA and the entries of its tensors.

    Attributes:
        version: of this record.
        dna: digest of the DNA.
        at_once: how the network is rebuilt, see :func:`lwdna.rebuilding.structure`.
        training: mode of the network.
        modes: paths of the modules that are in the other mode.
        fixed: names of the parameters that take no gradient.
        orders: name -> dimensions from the outermost in memory, of tensors that are not contiguous.
        sum: SHA-256 of the other fields and of all tensors.
    """

    version: int
    dna: str
    at_once: bool
    training: bool
    modes: tuple[str, ...]
    fixed: tuple[str, ...]
    orders: Mapping[str, tuple[int, ...]]
    sum: str = ""


def write(net: nn.Module, path: Path, dna: str, *, at_once: bool) -> None:
    """Write the tensors of a network, each once.

    Args:
        net: a captured network.
        path: of the file.
        dna: digest of its DNA.
        at_once: see :class:`State`.

    Raises:
        DnaError: a tensor has no values, or a type that the format does not have.
    """
    first = first_names(net)
    named = {name: t.detach() for name, t in named_tensors(net) if first[id(t)] == name}
    for name, t in named.items():
        if t.is_meta or t.layout is not torch.strided:
            raise DnaError(f"tensor {name!r} has no values to save: it is {t.layout} on {t.device}")
    state = State(
        version=VERSION,
        dna=dna,
        at_once=at_once,
        training=net.training,
        modes=tuple(p for p, m in net.named_modules() if m.training != net.training),
        fixed=tuple(name for name, p in net.named_parameters() if not p.requires_grad),
        orders={name: o for name, t in named.items() if (o := _order(t)) is not None},
    )
    # safetensors refuses tensors that share memory, as those of a flattened LSTM do.
    stored = {
        name: t.cpu().clone(memory_format=torch.contiguous_format) for name, t in named.items()
    }
    state = replace(state, sum=_sum(state, stored))
    try:
        save_file(stored, path, {"format": "pt", _KEY: json.dumps(asdict(state))})
    except (ValueError, KeyError, SafetensorError) as e:
        raise DnaError(f"the tensors cannot be stored: {type(e).__name__}: {e}") from e


def read_state(path: Path) -> State:
    """The record of a file that :func:`write` wrote.

    Raises:
        DnaError: there is no such file, it is damaged, or of a newer version.
    """
    if not path.is_file():  # to open a pipe would wait for ever
        raise DnaError(f"{path} cannot be read: there is no such file")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
    except (SafetensorError, OSError) as e:
        raise DnaError(f"{path} cannot be read: {type(e).__name__}: {e}") from e
    if text is None:
        raise DnaError(f"{path} was not written by lwdna.save: it says nothing of a DNA")
    data = parse(text, f"the record in {path}")
    version = data.get("version") if isinstance(data, dict) else None
    if version != VERSION:
        newer = isinstance(version, int) and version > VERSION
        remedy = "update lwdna" if newer else "save the network again"
        raise DnaError(f"{path} is of version {version}; this lwdna reads {VERSION}: {remedy}")
    state: State = build(State, data, f"the record in {path}")
    return state


def filled(blank: nn.Module, path: Path, state: State, device: torch.device | str) -> nn.Module:
    """A copy of a network with the values of a file.

    Args:
        blank: of the shapes in the file, on any device (meta too).
        path: of the file.
        state: its record.
        device: of the result.

    Raises:
        DnaError: names, shapes or types are others than the network's, or the file is damaged.
    """
    names = first_names(blank)
    wanted = {name: t for name, t in named_tensors(blank) if names[id(t)] == name}
    found = _read(path, wanted)
    if _sum(state, found) != state.sum:
        raise DnaError(f"{path} is damaged: its sum is not that of what it holds")
    _check_state(state, blank, wanted)
    placed = {name: _placed(t, state.orders.get(name), device) for name, t in found.items()}
    net: nn.Module = copy_with(blank, lambda old: placed[names[id(old)]])
    for name, module in net.named_modules():
        module.training = state.training != (name in state.modes)
    for name, p in net.named_parameters():
        p.requires_grad_(name not in state.fixed)
    return net


def _read(path: Path, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of the tensors, once their names and shapes are known to be right."""
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            for name in sorted(names ^ wanted.keys()):
                whose = "the file has and the network has not" if name in names else "is missing"
                raise DnaError(f"{path} is of another network: tensor {name[:200]!r} {whose}")
            for name, own in wanted.items():
                shape = tuple(file.get_slice(name).get_shape())
                if shape != tuple(own.shape):
                    raise DnaError(
                        f"{path} is of another network: tensor {name!r} has shape {shape}, "
                        f"and the DNA says {tuple(own.shape)}"
                    )
            found = {name: file.get_tensor(name).clone() for name in wanted}
    except (SafetensorError, OSError) as e:
        raise DnaError(f"{path} is damaged: {type(e).__name__}: {e}") from e
    for name, own in wanted.items():
        both = own.is_floating_point() and found[name].is_floating_point()
        if not both and own.dtype != found[name].dtype:
            raise DnaError(
                f"{path}: tensor {name!r} is {found[name].dtype}, and {own.dtype} in the network"
            )
    return found


def _check_state(state: State, blank: nn.Module, wanted: Mapping[str, Tensor]) -> None:
    paths = {path for path, _ in blank.named_modules()}
    unknown = {*state.modes} - paths | {*state.fixed, *state.orders} - wanted.keys()
    if unknown or any(
        sorted(order) != list(range(wanted[name].dim())) for name, order in state.orders.items()
    ):
        raise DnaError(f"the record of the weights speaks of what is not there: {unknown}"[:200])


def _sum(state: State, tensors: Mapping[str, Tensor]) -> str:
    record: dict[str, Any] = json.loads(json.dumps(asdict(replace(state, sum=""))))
    total = hashlib.sha256(digest(record).encode())
    for name, t in sorted(tensors.items()):
        total.update(f"{name}\0{t.dtype}\0{tuple(t.shape)}\0".encode())
        total.update(t.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def _order(t: Tensor) -> tuple[int, ...] | None:
    """Dimensions from the outermost in memory to the innermost; None for a contiguous tensor."""
    if t.is_contiguous():
        return None
    strides = t.stride()
    return tuple(sorted(range(t.dim()), key=lambda d: (-strides[d], d)))


def _placed(t: Tensor, order: tuple[int, ...] | None, device: torch.device | str) -> Tensor:
    if order is not None:
        back = sorted(range(t.dim()), key=lambda d: order[d])
        t = t.permute(order).contiguous().permute(back)
    return t.to(device)
