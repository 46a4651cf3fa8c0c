"""The written file is built once, on the meta device, and compared with the network."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lwdna.errors import VerificationError
from lwdna.fx_passes.module import CONSTANTS


def check_source(text: str, name: str, net: nn.Module) -> None:
    """Check that what a file builds has the tensors of a network.

    Args:
        text: the file.
        name: of the network's class in it.
        net: the network.

    Raises:
        VerificationError: parameters or buffers differ in name, shape, dtype, or in what is shared.
    """
    namespace: dict[str, Any] = {"__name__": "lwdna_exported"}
    exec(compile(text, "<exported by lwdna>", "exec"), namespace)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        again: nn.Module = namespace[name]()
    for what, expected, found in (
        ("parameters", _facts(net, "parameters"), _facts(again, "parameters")),
        ("buffers", _facts(net, "buffers"), _facts(again, "buffers")),
        ("state_dict", list(net.state_dict()), list(again.state_dict())),
    ):
        if expected != found:
            wrong = [pair for pair in zip(expected, found, strict=False) if pair[0] != pair[1]]
            raise VerificationError(
                f"the exported {name} has other {what} than the network: {len(found)} instead of "
                f"{len(expected)}; the first that differ are {wrong[:1] or 'at the end'}. Please "
                "report this network"
            )


def _facts(net: nn.Module, kind: str) -> list[tuple[object, ...]]:
    """(name, shape, dtype, requires_grad, name of the first that is the same) of each tensor."""
    first: dict[int, str] = {}
    found = []
    for name, tensor in getattr(net, f"named_{kind}")(remove_duplicate=False):
        if name.startswith(f"{CONSTANTS}."):
            continue
        same = first.setdefault(id(tensor), name)
        saved = tuple(tensor.shape), tensor.dtype, tensor.requires_grad
        found.append((name, *saved, same))
    constants = {name for name, *_ in found if name.rpartition(".")[2].startswith("constant")}
    return [fact for fact in found if fact[0] not in constants]
