"""What Python and torch must do differently while a model runs on proxies.

Everything here is put back when tracing ends.
"""

from __future__ import annotations

import builtins
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
import torch.fx._symbolic_trace
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor

from lwdna.fx_passes.autocast import recorded_autocast
from lwdna.fx_passes.proxy import HintedProxy, hint_of, is_proxy
from lwdna.trees import tree_leaves

if TYPE_CHECKING:
    from lwdna.fx_passes.tracer import HintedTracer

_FACTORY_NAMES = (
    "arange",
    "bartlett_window",
    "blackman_window",
    "empty",
    "eye",
    "full",
    "hamming_window",
    "hann_window",
    "linspace",
    "logspace",
    "ones",
    "rand",
    "randint",
    "randn",
    "randperm",
    "tensor",
    "tril_indices",
    "triu_indices",
    "zeros",
)
FACTORIES = {getattr(torch, name) for name in _FACTORY_NAMES}
_SIZE_FACTORIES = ("empty", "ones", "rand", "randn", "zeros")
_CONVOLUTIONS = tuple(f"conv{kind}{d}d" for kind in ("", "_transpose") for d in (1, 2, 3))
_POOLS = ("adaptive_avg_pool1d", "avg_pool1d", "avg_pool2d", "avg_pool3d")
#: Functions of C++ that take numbers which a model may compute from sizes.
_NUMBER_TAKERS = (*_CONVOLUTIONS, "narrow", "repeat_interleave", "roll", "topk")


def _without_dispatch(function: Any) -> Any:
    """The same Python function, without its hand-over to ``__torch_function__``."""
    namespace = {**function.__globals__, "has_torch_function": lambda _: False}
    return FunctionType(function.__code__, namespace, None, function.__defaults__)


#: Functions of torch that are traced through, since a rule for the whole could say little.
OPENED = {F.multi_head_attention_forward: _without_dispatch(F.multi_head_attention_forward)}


def is_model_code(target: Any) -> bool:
    """Whether a callable is a Python function that is not torch's own."""
    module = getattr(target, "__module__", None) or ""
    return isinstance(target, FunctionType) and module.split(".")[0] not in ("torch", "math")


@contextmanager
def python_for_proxies(tracer: HintedTracer) -> Iterator[None]:
    """Let builtins, factories and torch.fx itself take proxies.

    ``isinstance`` answers for the hint (a ``__class__`` that did would have C++ take the proxy for
    a tensor); ``len`` of a batch, ``max`` and ``min`` of sizes stay symbolic; the C++ parser would
    ask proxies for their present value; a checkpointed call is traced like any other; functions
    of the model's own that were marked by ``torch.fx.wrap`` are traced through, since an opaque
    function could only freeze the channels it sees. What Python cannot look into, or what has a
    backward pass of its own, is called as it is. What the model checks of sizes is asserted by the
    graph. Entering and leaving a region of mixed precision
    is recorded.

    Args:
        tracer: records what reaches no proxy.
    """
    replacements: dict[tuple[Any, str], Any] = {
        (builtins, "isinstance"): _instance_check(),
        (builtins, "len"): _length(),
        (builtins, "max"): _extremum(max),
        (builtins, "min"): _extremum(min),
        (torch.autograd.Function, "apply"): _own_backward(),
        (torch.jit.ScriptFunction, "__call__"): _scripted(),
        (torch.fx._symbolic_trace, "_wrapped_fns_to_patch"): _wrapped_of_torch(),
        (torch, "_check_with"): _checked(torch._check_with),
        **recorded_autocast(tracer),
    }
    for holder, name in _holders(torch.utils.checkpoint, tuple(_CHECKPOINTS)):
        replacements[holder, name] = _CHECKPOINTS[name]
    for name in (*_FACTORY_NAMES, *_NUMBER_TAKERS):
        replacements[torch, name] = _recorded(getattr(torch, name))
    for name in (*_CONVOLUTIONS, *_POOLS):
        replacements[F, name] = _recorded(getattr(F, name))
    with ExitStack() as stack, exact_attention():
        for (owner, name), replacement in replacements.items():
            own = vars(owner).get(name)
            stack.callback(*((setattr, owner, name, own) if own else (delattr, owner, name)))
            setattr(owner, name, replacement)
        yield


@contextmanager
def exact_attention() -> Iterator[None]:
    """Attention by its layers, as in training, not by the fused kernel for evaluation.

    The two differ in rounding, and only the layers are part of a captured graph.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.MultiheadAttention.html
    ("fastpath").
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _wrapped_of_torch() -> dict[Any, dict[str, Any]]:
    wrapped = torch.fx._symbolic_trace._wrapped_fns_to_patch
    return {key: frame for key, frame in wrapped.items() if not is_model_code(frame.get(key[1]))}


def _tracer_of(args: Any) -> Any:
    """The tracer that a call with these arguments is recorded by; None if it just runs."""
    found = next((v for v in tree_leaves(args) if is_proxy(v)), None)
    return None if found is None or found.tracer.evaluation.running else found.tracer


def _own_backward() -> Any:
    original = torch.autograd.Function.apply

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        bound = getattr(original, "__func__", None)
        run = super(torch.autograd.Function, cls).apply if bound is None else bound.__get__(cls)
        tracer = _tracer_of((args, kwargs))
        if tracer is None:
            return run(*args, **kwargs)
        if cls is torch.utils.checkpoint.CheckpointFunction:  # by a name that nobody knows
            function, _preserve_rng_state, *inputs = args
            return _checkpoint(function, *inputs)
        return tracer.call_function(cls.__name__, _Apply(cls), args, kwargs)

    return classmethod(apply)


class _Apply:
    """``function_class.apply``, looked up when it is called."""

    def __init__(self, function_class: Any) -> None:
        self.function_class = function_class

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function_class.apply(*args, **kwargs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Apply) and self.function_class is other.function_class

    def __hash__(self) -> int:
        return hash(self.function_class)


def _scripted() -> Callable[..., Any]:
    original = torch.jit.ScriptFunction.__call__

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        tracer = _tracer_of((args, kwargs))
        if tracer is None:
            return original(self, *args, **kwargs)
        return tracer.call_function(self.name, self, args, kwargs)

    return call


def _instance_check() -> Callable[[Any, Any], bool]:
    is_instance = isinstance

    def instance_check(value: Any, types: Any) -> bool:
        if type(value) is HintedProxy and is_instance(value.hint, types):
            return True
        return is_instance(value, types)

    return instance_check


def _length() -> Callable[[Any], Any]:
    is_instance, length = isinstance, len

    def count(value: Any) -> Any:
        if type(value) is HintedProxy and is_instance(value.hint, Tensor):
            return value.shape[0]
        return length(value)

    return count


def _extremum(original: Callable[..., Any]) -> Callable[..., Any]:
    def of(*args: Any, **kwargs: Any) -> Any:
        found = next((a for a in args if is_proxy(a)), None)
        if found is None or kwargs or not all(isinstance(hint_of(a), (int, float)) for a in args):
            return original(*args, **kwargs)
        return found.tracer.create_proxy("call_function", original, args, {})

    return of


def _checked(original: Callable[..., None]) -> Callable[..., None]:
    """``torch._check`` and its like, which insist on a ``bool``."""

    def check(error_type: Any, condition: Any, message: Any) -> None:
        original(error_type, bool(condition) if is_proxy(condition) else condition, message)

    return check


def _recorded(original: Callable[..., Any]) -> Callable[..., Any]:
    def make(*args: Any, **kwargs: Any) -> Any:
        tracer = _tracer_of((args, kwargs))
        if tracer is None:
            return original(*args, **kwargs)
        if len(args) > 1 and original.__name__ in _SIZE_FACTORIES:
            args = (args,)
        return tracer.create_proxy("call_function", original, args, kwargs)

    return make


_CHECKPOINT_OPTIONS = (
    "context_fn",
    "debug",
    "determinism_check",
    "early_stop",
    "preserve_rng_state",
    "respect_saved_tensors_hooks",
    "use_reentrant",
)


def _holders(owner: Any, names: tuple[str, ...]) -> Iterator[tuple[Any, str]]:
    """Where functions of a module are found by name: in itself, and where they were imported."""
    functions = [(name, getattr(owner, name)) for name in names]
    for module in list(sys.modules.values()):
        members = getattr(module, "__dict__", {})
        for name, function in functions:
            if members.get(name) is function:
                yield module, name


def _warn_checkpoint() -> None:
    warnings.warn(
        "the model checkpoints activations, which the captured network does not: its results and "
        "gradients are the same, and training it takes the memory of all activations",
        stacklevel=4,
    )


def _checkpoint(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    _warn_checkpoint()
    return function(*args, **{k: v for k, v in kwargs.items() if k not in _CHECKPOINT_OPTIONS})


def _checkpoint_sequential(functions: Any, segments: int, input: Any, **options: Any) -> Any:
    _warn_checkpoint()
    for function in (
        functions.children() if isinstance(functions, torch.nn.Sequential) else functions
    ):
        input = function(input)
    return input


_CHECKPOINTS = {"checkpoint": _checkpoint, "checkpoint_sequential": _checkpoint_sequential}
