"""lwdna: layer-wise differentiated network architectures by shrinking a widened network once.

The public names are listed, and imported, in :mod:`lwdna._public`. That takes as long as importing
torch does, and waits until a name is asked for: ``lwdna --help`` asks for none.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lwdna._public import *  # noqa: F403 - each of them is listed there
    from lwdna._public import __all__ as __all__


def __getattr__(name: str) -> Any:
    if name.startswith("__") and name != "__all__":  # what inspect and doctest ask for
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Modules first: they import one another while the public names are being made.
    if find_spec(f"{__name__}.{name}") is not None:
        return import_module(f"{__name__}.{name}")
    public = import_module(f"{__name__}._public")
    if not hasattr(public, name):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return globals().setdefault(name, getattr(public, name))


def __dir__() -> list[str]:
    return sorted({*globals(), *import_module(f"{__name__}._public").__all__})
