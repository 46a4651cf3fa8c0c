"""What passes refuse before they begin: networks in a state that cannot be worked on."""

from __future__ import annotations

from torch import nn

from lwdna.errors import UnsupportedModelError
from lwdna.fx_passes.members import named_modules

#: What ends a string in generated code.
_UNQUOTABLE = frozenset('"\\\n\r')


def check_initialised(name: str, p: nn.Parameter) -> None:
    """Refuse a lazy parameter.

    Raises:
        UnsupportedModelError: the parameter has no shape yet.
    """
    if isinstance(p, nn.parameter.UninitializedParameter):
        raise UnsupportedModelError(
            f"parameter {name!r} is lazy and not initialised: run the model once on a batch first"
        )


def check_values(network: nn.Module, purpose: str) -> None:
    """Refuse a network that is (partly) on the meta device.

    Args:
        network: any module.
        purpose: what values are needed for.

    Raises:
        UnsupportedModelError: names the first parameter or buffer without values.
    """
    for name, t in (*network.named_parameters(), *network.named_buffers()):
        if t.is_meta:
            raise UnsupportedModelError(
                f"{name!r} is on the meta device, and {purpose} needs values: build the network on "
                "another device, or call its to_empty(device=...) and load a state_dict"
            )


def check_names(model: nn.Module) -> None:
    """Refuse names that torch.fx would write into the code it generates, as they are.

    Raises:
        UnsupportedModelError: names the module, parameter or buffer.
    """
    for path, module in named_modules(model):
        tensors = (*module._parameters.items(), *module._buffers.items())
        own = [f"{path}.{name}" if path else name for name, t in tensors if t is not None]
        for name in (path, *own):
            if not _UNQUOTABLE.isdisjoint(name):
                raise UnsupportedModelError(
                    f"the name {name!r} has a quote, a backslash or a line break, which would "
                    "become code of the captured network: rename it"
                )
