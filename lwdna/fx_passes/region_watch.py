"""Watch a network run: which submodules are called with what, and what else is used of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from lwdna.fx_passes.module import detached_copy, to_meta
from lwdna.fx_passes.regions import of_samples

#: Every module has these: to use them is not to use more than a graph offers.
_OF_EVERY_MODULE = {*dir(nn.Module), *vars(nn.Module())}
#: What a run may raise where the code is not made for the mode or for the inputs.
RUN_ERRORS = (RuntimeError, ValueError, TypeError, AssertionError, LookupError, AttributeError)


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a submodule: positional arguments and result, on the meta device.

    ``args`` is None where the arguments cannot be given by position.
    """

    args: tuple[Any, ...] | None
    out: Any


@dataclass
class Watch:
    """What running a network in both modes has shown.

    Attributes:
        calls: path -> calls of the submodule.
        used: path -> (path below it, attribute) pairs that code outside of the submodule's own
            ``forward`` looked up.
        bypassed: submodules of which a part was called while they were not.
        value_sized: whether an operator ran whose result's size depends on values (NMS,
            ``torch.nonzero``, selection by a mask).
        failed: mode -> why the network does not run in it.
    """

    calls: dict[str, list[Call]] = field(default_factory=dict)
    used: dict[str, set[tuple[str, str]]] = field(default_factory=dict)
    bypassed: set[str] = field(default_factory=set)
    value_sized: bool = False
    failed: dict[str, str] = field(default_factory=dict)


def watch(model: nn.Module, arguments: tuple[Any, ...]) -> Watch:
    """Run a copy of ``model`` in training and in evaluation mode and note what happens.

    Args:
        model: the network; not changed.
        arguments: real positional arguments of ``forward``.
    """
    seen = Watch()
    copy = detached_copy(model)
    with _watched(copy, seen):
        seen.failed = run_in_both_modes(copy, arguments)
    return seen


def run_in_both_modes(
    network: nn.Module,
    arguments: tuple[Any, ...],
    *,
    then: Callable[[str, Any], None] | None = None,
) -> dict[str, str]:
    """Run in training mode on two samples, then in evaluation mode on one.

    Two because batch norms need them, one because that is what costs are for. The random state
    starts from a fixed seed and is put back.

    Args:
        network: the network; its buffers may change.
        arguments: real positional arguments of ``forward``.
        then: called with the mode and what the network returned.

    Returns:
        Mode (``"training"`` or ``"evaluation"``) -> why the network does not run in it.
    """
    failed = {}
    devices = {t.device for t in network.parameters() if t.device.type == "cuda"}
    for mode, samples in (("training", 2), ("evaluation", 1)):
        network.train(mode == "training")
        with torch.random.fork_rng(devices=list(devices)), torch.no_grad():
            torch.manual_seed(0)
            try:
                out = network(*of_samples(_fresh(arguments), samples))
            except RUN_ERRORS as e:
                failed[mode] = f"{type(e).__name__}: {e}"
                continue
        if then is not None:
            then(mode, out)
    return failed


def _fresh(arguments: Any) -> Any:
    """Copies: detectors change the boxes of their targets in place."""
    return tree_map_only(Tensor, torch.clone, arguments)


class _SizesFromValues(TorchDispatchMode):
    """Notes operators whose result's size depends on values."""

    def __init__(self, seen: Watch) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = seen

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if torch.Tag.dynamic_output_shape in func.tags:
            by_mask = func.overloadpacket is not torch.ops.aten.index or any(
                i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]
            )
            self.seen.value_sized |= by_mask
        self.seen.value_sized |= func.name() == "torchvision::nms"
        return func(*args, **(kwargs or {}))


@contextmanager
def _watched(network: nn.Module, seen: Watch) -> Iterator[None]:
    active: dict[str, int] = {}
    with ExitStack() as stack:
        for path, module in network.named_modules():
            if path:
                _hook(module, path, seen, active, stack)
                _look(module, path, seen, active)
        stack.enter_context(_SizesFromValues(seen))
        yield


def _hook(
    module: nn.Module, path: str, seen: Watch, active: dict[str, int], stack: ExitStack
) -> None:
    above = [a for a in _upwards(path) if a != path]
    signature = inspect.signature(module.forward)
    given: list[tuple[Any, ...] | None] = []

    def enter(_m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.bypassed.update(a for a in above if not active.get(a))
        active[path] = active.get(path, 0) + 1
        bound = signature.bind(*args, **kwargs)
        given.append(None if bound.kwargs else to_meta(bound.args))

    def leave(_m: nn.Module, _args: Any, _kwargs: Any, out: Any) -> None:
        active[path] -= 1
        if given:
            seen.calls.setdefault(path, []).append(Call(given.pop(), to_meta(out)))

    for handle in (
        module.register_forward_pre_hook(enter, with_kwargs=True),
        module.register_forward_hook(leave, with_kwargs=True, always_call=True),
    ):
        stack.callback(handle.remove)


def _upwards(path: str) -> Iterator[str]:
    """``"a.b.c"``, ``"a.b"``, ``"a"``."""
    while path:
        yield path
        path = path.rpartition(".")[0]


def _look(module: nn.Module, path: str, seen: Watch, active: dict[str, int]) -> None:
    """Note the attributes that are looked up on the module from outside of its ``forward``."""
    kind = type(module)
    levels = [(above, path[len(above) + 1 :]) for above in _upwards(path)]

    def look_up(self: Any, name: str) -> Any:
        if name not in _OF_EVERY_MODULE and not active.get(path):
            for above, rest in levels:
                if not active.get(above):
                    seen.used.setdefault(above, set()).add((rest, name))
        return kind.__getattribute__(self, name)

    # The copy's class, for this run alone: only a class can intercept its attributes.
    module.__class__ = type(kind.__name__, (kind,), {"__getattribute__": look_up})
