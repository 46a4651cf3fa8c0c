"""Where a network comes from: the library, the name and the arguments that construct it."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lwdna.errors import SourceError
from lwdna.fx_passes.module import meta_twin

#: Arguments that say where values come from, not what the network is: a file never has them.
_OF_VALUES = {
    "timm": ("pretrained", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"),
    "torchvision": ("weights", "weights_backbone", "progress"),
}
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_NAME = re.compile(r"[A-Za-z_][\w.]*", re.ASCII)
_MOST_CHARACTERS = 200
#: Where :func:`build` notes the source on a model; deepcopy keeps it.
_NOTE = "_lwdna_source"


@dataclass(frozen=True)
class ModelSource:
    """The constructor of a network, and its arguments.

    Attributes:
        library: ``"timm"``, ``"torchvision"``, or the module that has the factory.
        name: of the model in its library, or of the factory.
        arguments: keyword arguments, in JSON's types (a tuple becomes a list); those that load
            weights (``pretrained``, ``weights`` ...) do not belong to it.

    Raises:
        SourceError: no such names, or arguments that JSON does not have.

    >>> str(ModelSource.of("timm:resnet50", num_classes=10))
    'timm:resnet50 (num_classes=10)'
    """

    library: str
    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for text, pattern in ((self.library, _MODULE), (self.name, _NAME)):
            if len(text) > _MOST_CHARACTERS or not pattern.fullmatch(text):
                raise SourceError(f"{text[:60]!r} names no constructor: {_FORMS}")
        loading = [a for a in _OF_VALUES.get(self.library, ()) if a in self.arguments]
        if loading:
            raise SourceError(
                f"argument {loading[0]!r} of {self.library}:{self.name} says where values come "
                "from, and not what the network is: leave it out"
            )
        for key, value in self.arguments.items():
            if len(key) > _MOST_CHARACTERS or not key.isidentifier():
                raise SourceError(f"{key[:60]!r} is no name of an argument")
            try:
                json.dumps(value, allow_nan=False)
            except (TypeError, ValueError) as e:
                raise SourceError(
                    f"argument {key!r} of {self.library}:{self.name} is no value of JSON ({e}): "
                    "write a function that builds the network, and name it as 'module:function'"
                ) from e
        object.__setattr__(self, "arguments", json.loads(json.dumps(dict(self.arguments))))

    def __str__(self) -> str:
        given = ", ".join(f"{key}={repr(v)[:100]}" for key, v in self.arguments.items())
        return f"{self.library}:{self.name}" + (f" ({given})" if given else "")

    @classmethod
    def of(cls, name: str, /, **arguments: Any) -> ModelSource:
        """A source from its short form, ``"library:name"``.

        Raises:
            SourceError: see the class.
        """
        library, colon, model = name.partition(":")
        if not colon:
            raise SourceError(f"{name[:60]!r} names no constructor: {_FORMS}")
        return cls(library, model, arguments)


_FORMS = "write 'timm:resnet50', 'torchvision:resnet50' or 'package.module:factory'"


def create(name: str, /, **arguments: Any) -> nn.Module:
    """Build a network, and note on it how: :func:`lwdna.shrink` puts that into the DNA.

    Args:
        name: ``"timm:resnet50"``, ``"torchvision:resnet50"``, or ``"package.module:factory"``, a
            function that returns an ``nn.Module``.
        arguments: of the constructor, in JSON's types. Those that load weights (timm's
            ``pretrained``, torchvision's ``weights`` ...) are passed on, and not noted: a DNA says
            what the network is. Without them nothing is downloaded.

    Returns:
        The network as its constructor gives it.

    Raises:
        SourceError: there is no such constructor, or it does not take the arguments.

    >>> create("timm:resnet50", num_classes=10)  # doctest: +SKIP
    """
    source, loading = parted(name, arguments)
    return build(source, trust=(source.library,), **loading)


def parted(name: str, arguments: Mapping[str, Any]) -> tuple[ModelSource, dict[str, Any]]:
    """What a network is, and where its values come from.

    Args:
        name: as for :func:`create`.
        arguments: of the constructor.

    Returns:
        The source, and those of the arguments that load weights.

    Raises:
        SourceError: the name or an argument cannot be written down.
    """
    keys = _OF_VALUES.get(name.partition(":")[0], ())
    loading = {key: arguments[key] for key in keys if key in arguments}
    rest = {key: value for key, value in arguments.items() if key not in loading}
    return ModelSource.of(name, **rest), loading


def source_of(model: nn.Module) -> ModelSource | None:
    """How a network was made: what :func:`build` noted, or what timm's own record says.

    None where neither is there, or where timm was given what JSON does not have.
    """
    noted: ModelSource | None = vars(model).get(_NOTE)
    if noted is not None or not type(model).__module__.startswith("timm."):
        return noted
    configuration: Any = getattr(model, "pretrained_cfg", None) or {}
    tag = configuration.get("tag")
    # timm 1.0.20 does not note the arguments; what else was given shows when the DNA is saved.
    arguments = getattr(model, "_model_args", {"num_classes": getattr(model, "num_classes", None)})
    try:
        name = f"{configuration['architecture']}.{tag}" if tag else configuration["architecture"]
        return ModelSource("timm", name, {k: v for k, v in arguments.items() if v is not None})
    except (SourceError, KeyError, TypeError):
        return None


def build(source: ModelSource, *, trust: Sequence[str] = (), **loading: Any) -> nn.Module:
    """The network of a source, with the source noted on it.

    Args:
        source: the constructor.
        trust: modules (or packages of modules) that may be imported; timm and torchvision always.
        loading: further arguments, which say where values come from.

    Raises:
        SourceError: the module is not trusted, there is no such constructor, or it fails.
        TypeError: ``trust`` is text.
    """
    if isinstance(trust, str):
        raise TypeError(f"trust={trust!r}: a sequence of module names, such as [{trust!r}]")
    constructors = {"timm": _of_timm, "torchvision": _of_torchvision}
    if source.library not in constructors and not _is_within(source.library, trust):
        raise SourceError(
            f"{source.library}:{source.name} is code of the module {source.library!r}: pass "
            f"trust=[{source.library!r}] if you trust what that would run"
        )
    construct = constructors.get(source.library, _of_module)
    try:
        model = construct(source, loading)
    except SourceError:
        raise
    except Exception as e:
        raise SourceError(f"{source} fails: {type(e).__name__}: {e}") from e
    if not isinstance(model, nn.Module):
        raise SourceError(f"{source} gives a {type(model).__name__}, and no nn.Module")
    setattr(model, _NOTE, source)
    return model


def _is_within(module: str, packages: Sequence[str]) -> bool:
    """Whether a module is one of these, or a submodule of one."""
    return any(f"{module}.".startswith(f"{package}.") for package in packages)


def without_values(construct: Callable[[], nn.Module]) -> nn.Module:
    """What a constructor gives, with its parameters and buffers on the meta device.

    A constructor that reads values of its tensors (timm 1.0.20's some) runs as usual, and what it
    gives is taken to the meta device. The random state is put back.

    Args:
        construct: gives the network; may be called twice.
    """
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"), _Undrawn():
                return construct()
        except (RuntimeError, SourceError) as e:
            if isinstance(e, SourceError) and not isinstance(e.__cause__, RuntimeError):
                raise
        model: nn.Module = meta_twin(construct())
        return model


#: What draws entries: on the meta device Python, which takes longer than the values would.
_DRAWING = frozenset(
    (
        Tensor.normal_,
        Tensor.uniform_,
        nn.init.normal_,
        nn.init.uniform_,
        nn.init.kaiming_uniform_,
    )
)


class _Undrawn(TorchFunctionMode):
    """Leaves tensors without values as they are where entries would be drawn."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = kwargs or {}
        if func in _DRAWING:
            tensor = args[0] if args else given.get("tensor")
            if isinstance(tensor, Tensor) and tensor.is_meta:
                return tensor
        return func(*args, **given)


def _of_timm(source: ModelSource, loading: Mapping[str, Any]) -> Any:
    import timm  # takes as long to import as torch

    if not timm.is_model(source.name.partition(".")[0]):
        raise SourceError(f"timm {timm.__version__} has no model {source.name!r}")
    return timm.create_model(source.name, **{**source.arguments, **loading})


def _of_torchvision(source: ModelSource, loading: Mapping[str, Any]) -> Any:
    import torchvision
    from torchvision import models

    if source.name not in models.list_models():
        raise SourceError(f"torchvision {torchvision.__version__} has no model {source.name!r}")
    builder = models.get_model_builder(source.name)
    # Detectors load a backbone unless they are told not to.
    known = inspect.signature(builder).parameters
    none = {key: None for key in ("weights", "weights_backbone") if key in known}
    return builder(**{**none, **source.arguments, **loading})


def _of_module(source: ModelSource, loading: Mapping[str, Any]) -> Any:
    factory = getattr(import_module(source.library), source.name)
    home = str(getattr(factory, "__module__", None))
    if not _is_within(home, [source.library]):
        # A module has names of others, too: one that imports os.system would lend it to any file.
        raise SourceError(
            f"{source.library}:{source.name} is code of {home!r}: name a function that is written "
            f"in {source.library!r}, or below it"
        )
    return factory(**source.arguments, **loading)
