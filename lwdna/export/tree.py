"""The module tree of a captured network, as it is written: what each module becomes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from torch.fx import GraphModule

from lwdna.errors import UnsupportedModelError
from lwdna.export.code import quoted
from lwdna.export.names import is_identifier
from lwdna.fx_passes.module import CONSTANTS, FUNCTIONS, Container

PLAIN = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Tree:
    """The modules of a network.

    Attributes:
        modules: path -> module, every one once, parents first; the root is at "".
        shared: further path -> path in ``modules`` of the same object.
    """

    modules: dict[str, nn.Module]
    shared: dict[str, str]

    def children(self, path: str) -> dict[str, str]:
        """Name -> path of the children of a module."""
        return {
            name: join(path, name)
            for name in self.modules[path]._modules
            if path or name not in (CONSTANTS, FUNCTIONS)
        }

    def is_container(self, path: str) -> bool:
        """Whether the code of a module is in the graph, if it has code."""
        module = self.modules.get(path)
        return module is not None and (not path or type(module) in (Container, *PLAIN))

    def numbered(self, path: str) -> bool:
        """Whether the children are called "0", "1" ..., as those of a sequence."""
        names = list(self.children(path))
        return bool(names) and names == [str(k) for k in range(len(names))]

    def access(self, path: str, start: str) -> str:
        """How code in the module at ``start`` reaches what is at ``path`` below it."""
        text, at = "self", start
        rest = path[len(start) :].lstrip(".") if start else path
        for name in rest.split(".") if rest else ():
            text = self._step(text, at, name)
            at = join(at, name)
        return text

    def _step(self, text: str, at: str, name: str) -> str:
        if type(self.modules.get(at)) is nn.ModuleDict:
            return f"{text}[{quoted(name)}]"
        if self.is_container(at) and name in self.children(at) and self.numbered(at):
            return f"{text}[{name}]"
        return f"{text}.{name}" if is_identifier(name) else f"getattr({text}, {quoted(name)})"


def join(path: str, name: str) -> str:
    """The path of a child."""
    return f"{path}.{name}" if path else name


def tree_of(net: GraphModule) -> Tree:
    """The tree of a captured network.

    Raises:
        UnsupportedModelError: a module has hooks, or a name that code cannot use.
    """
    tree = Tree({}, {})
    _add(tree, net, "", {})
    for path, module in tree.modules.items():
        _check(path, module, tree.is_container(path))
    return tree


def _add(tree: Tree, module: nn.Module, path: str, known: dict[nn.Module, str]) -> None:
    known[module] = path
    tree.modules[path] = module
    if not tree.is_container(path):
        return
    for name, inner in tree.children(path).items():
        child = module._modules[name]
        if child is None:
            continue
        if child in known:
            tree.shared[inner] = known[child]
        else:
            _add(tree, child, inner, known)


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _check(path: str, module: nn.Module, container: bool) -> None:
    for child in (module,) if container else module.modules():
        if any(getattr(child, kind) for kind in _HOOKS):
            raise UnsupportedModelError(
                f"module {path!r} ({module._get_name()}) has hooks, which source code does not "
                "show: remove them, and register them on what the file builds"
            )
    if container:
        for name in (*module._parameters, *module._buffers, *module._modules):
            if hasattr(nn.Module, name) or (path and hasattr(type(module), name)):
                raise UnsupportedModelError(
                    f"{join(path, name)!r} has the name of an attribute of every module: rename it"
                )


def containers(tree: Tree) -> Iterator[str]:
    """Paths of all containers, children before their parents."""
    return (path for path in reversed(tree.modules) if tree.is_container(path))
