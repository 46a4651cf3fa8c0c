"""Writes the modules of a network as classes, the innermost first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn

from lwdna.export.code import Code, Group, call, quoted
from lwdna.export.functions import Writer
from lwdna.export.leaves import leaf
from lwdna.export.literals import Tables, zeros_like
from lwdna.export.names import Imports, identifier, is_identifier
from lwdna.export.scopes import Program
from lwdna.export.templates import Template, Written, parametrise
from lwdna.export.tree import PLAIN, Tree, join

#: Arguments of a constructor; modules that would need more get classes of their own.
_MOST = 10


class Classes:
    """Makes the classes of a network, the innermost modules first.

    Args:
        program: the network's modules and steps.
        writer: writes ``forward``.
        imports: collects what the code needs.
        tables: writes tensors that no state_dict holds.
    """

    def __init__(self, program: Program, writer: Writer, imports: Imports, tables: Tables) -> None:
        self._program = program
        self._tree: Tree = program.tree
        self._writer = writer
        self._imports = imports
        self._tables = tables
        self._instances: dict[str, tuple[Written, int]] = {}
        self._later: list[tuple[str, Code]] = []  # (path, value) set when all is made
        self.written: list[Written] = []

    def make(self, extra: Mapping[str, Code]) -> None:
        """Make all classes; that of the network is the last.

        Args:
            extra: attribute -> value, set on the network itself.
        """
        heights: dict[str, int] = {}
        for path in reversed(self._tree.modules):
            if self._is_class(path) or self._tree.is_container(path):
                inner = [heights.get(p, 0) for p in self._tree.children(path).values()]
                heights[path] = 1 + max(inner, default=0)
        own = [path for path in self._tree.modules if path in heights and self._is_class(path)]
        for height in sorted({heights[path] for path in own if path}):
            self._share([self._template(p) for p in own if p and heights[p] == height])
        root = self._template("", extra)
        self._share([root])

    def _is_class(self, path: str) -> bool:
        """Whether a module is written as a class of its own."""
        scope = self._program.scopes.get(path)
        kind = type(self._tree.modules[path])
        plain = kind in PLAIN and path
        chain = scope is not None and scope.chain
        return self._tree.is_container(path) and not plain and not chain

    def _template(self, path: str, extra: Mapping[str, Code] | None = None) -> Template:
        module = self._tree.modules[path]
        children = {
            name: self._construct(child, path)
            for name, child in self._tree.children(path).items()
            if module._modules[name] is not None
        }
        numbered = self._tree.numbered(path) and len(children) == len(self._tree.children(path))
        base = "nn.Sequential" if numbered else "nn.Module"
        fields = [call("super().__init__", *(children.values() if numbered else ()))]
        fields += self._tensors(path, module)
        fields += [] if numbered else [_assigned(name, code) for name, code in children.items()]
        if extra is not None:
            fields += [_assigned(name, code) for name, code in extra.items()]
            fields += self._finish()
        scope = self._program.scopes.get(path)
        function = None if scope is None else self._writer.function(scope)
        return Template(path, module._get_name(), base, tuple(fields), function)

    def _tensors(self, path: str, module: nn.Module) -> Iterator[Code]:
        for name, p in module._parameters.items():
            if p is not None:
                self._imports.add("import torch")
                value = zeros_like(p, name)
                frozen: tuple[Code, ...] = () if p.requires_grad else (("requires_grad=False",),)
                code = call("nn.Parameter", value, *frozen)
                yield (
                    _assigned(name, code)
                    if is_identifier(name)
                    else call("self.register_parameter", (quoted(name),), code)
                )
        for name, buffer in module._buffers.items():
            if buffer is None:
                continue
            if name in module._non_persistent_buffers_set:
                value = self._tables.of(buffer, f"buffer {join(path, name)!r}")
                last: tuple[Code, ...] = (("persistent=False",),)
            else:
                self._imports.add("import torch")
                value, last = zeros_like(buffer, name), ()
            yield call("self.register_buffer", (quoted(name),), value, *last)
        constants = self._tree.modules[""]
        for target, place in self._program.constants.items():
            if place.rpartition(".")[0] == path:
                value = self._tables.of(constants.get_buffer(target), f"constant {place!r}")
                name = quoted(place.rpartition(".")[2])
                yield call("self.register_buffer", (name,), value, ("persistent=False",))

    def _construct(self, path: str, owner: str) -> Code:
        """The expression that makes the module at a path, in the class of the one at ``owner``."""
        hint = path.removeprefix(f"{owner}.").replace(".", "_")
        if path in self._tree.shared:
            return ("nn.Identity()",)  # replaced when the other one is made
        module = self._tree.modules[path]
        if path in self._instances:
            written, k = self._instances[path]
            return written.instance(k, hint)
        if not self._tree.is_container(path):
            made = leaf(module, path, hint, self._imports)
            self._later += [(join(path, rest), code) for rest, code in made.later]
            return made.constructor
        return self._plain(path, module, owner)

    def _plain(self, path: str, module: nn.Module, owner: str) -> Code:
        children = {
            name: ("None",) if module._modules[name] is None else self._construct(child, owner)
            for name, child in self._tree.children(path).items()
        }
        if isinstance(module, nn.ModuleList):
            items = (Group(tuple(children.values()), "[", "]"),) if children else ()
            return call("nn.ModuleList", *((items,) if items else ()))
        if isinstance(module, nn.ModuleDict):
            entries = tuple((f"{quoted(name)}: ", *code) for name, code in children.items())
            return call("nn.ModuleDict", *(((Group(entries, "{", "}"),),) if entries else ()))
        if self._tree.numbered(path) or not children:
            return call("nn.Sequential", *children.values())
        self._imports.add("from collections import OrderedDict")
        pairs = tuple((Group(((quoted(name),), code)),) for name, code in children.items())
        return call("nn.Sequential", call("OrderedDict", (Group(pairs, "[", "]"),)))

    def _finish(self) -> Iterator[Code]:
        """What is left when all modules are made: other attributes, shared modules and tensors."""
        for path, code in self._later:
            yield (f"{self._tree.access(path, '')} = ", *code)
        for path, first in self._tree.shared.items():
            yield self._same(path, first)
        seen: dict[int, str] = {}
        for path, module in self._tree.modules.items():
            inside = (path,) if self._tree.is_container(path) else None
            named = module.named_modules(prefix=path) if inside is None else [(path, module)]
            for at, child in named:
                for name, tensor in (*child._parameters.items(), *child._buffers.items()):
                    if tensor is None:
                        continue
                    own = join(at, name)
                    if id(tensor) in seen:
                        yield self._same(own, seen[id(tensor)])
                        continue
                    seen[id(tensor)] = own
                    frozen = name in child._parameters and not tensor.requires_grad
                    if frozen and inside is None:
                        yield (f"{self._tree.access(own, '')}.requires_grad_(False)",)

    def _same(self, path: str, first: str) -> Code:
        parent, _, name = path.rpartition(".")
        value = self._tree.access(first, "")
        if is_identifier(name) or self._tree.access(path, "").endswith("]"):
            return (f"{self._tree.access(path, '')} = {value}",)
        return (f"setattr({self._tree.access(parent, '')}, {quoted(name)}, {value})",)

    def _share(self, templates: list[Template]) -> None:
        groups: dict[tuple[object, ...], list[Template]] = {}
        for template in templates:
            groups.setdefault(template.key(), []).append(template)
        for group in groups.values():
            if len(self._written(group).parameters) <= _MOST:
                self._add(group)
                continue
            alike: dict[tuple[str, ...], list[Template]] = {}
            for template in group:
                values = tuple(repr(number.value) for number in template.numbers())
                alike.setdefault(values, []).append(template)
            for part in alike.values():
                self._add(part)

    def _written(self, group: list[Template]) -> Written:
        written = Written(self._class_name(group[0]), group)
        parametrise(written, self._used(group[0].path))
        return written

    def _add(self, group: list[Template]) -> None:
        written = self._written(group)
        self.written.append(written)
        for k, template in enumerate(group):
            self._instances[template.path] = (written, k)

    def _class_name(self, template: Template) -> str:
        own = identifier(template.name, "Module")
        used = {written.name for written in self.written}
        if template.path:  # the network's own is for the network
            used.add(identifier(self._tree.modules[""]._get_name(), "Module"))
        name, k = own, 2
        while name in used:
            name, k = f"{own}{k}", k + 1
        return name

    def _used(self, path: str) -> set[str]:
        """Names of attributes that the class has already."""
        module = self._tree.modules[path]
        constants = {place.rpartition(".")[2] for place in self._program.constants.values()}
        held = {*module._parameters, *module._buffers, *module._modules}
        return {*dir(nn.Module), *held, *constants, "training"}


def _assigned(name: str, code: Code) -> Code:
    if is_identifier(name):
        return (f"self.{name} = ", *code)
    return call("self.add_module", (quoted(name),), code)
