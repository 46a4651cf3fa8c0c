"""Save and load: a directory with ``dna.json`` and ``model.safetensors``.

The weights name their DNA by its digest, so the two files cannot be taken for a pair that they are
not. Saving over an older network, the new DNA is first put beside the old one (``dna.json.new``);
the pair changes at the one moment in which the new weights take the place of the old.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from secrets import token_hex
from stat import S_IMODE
from typing import Any

import torch
from torch import nn

from lwdna import weights
from lwdna.dna import Dna
from lwdna.errors import DnaError, SourceError
from lwdna.fx_passes.likeness import differences
from lwdna.fx_passes.regions import meta_of
from lwdna.rebuilding import dna_of, structure
from lwdna.source import ModelSource
from lwdna.strict_json import MOST_CHARACTERS

DNA = "dna.json"
WEIGHTS = "model.safetensors"
#: The name of a model's configuration on the Hugging Face Hub.
HUB_CONFIGURATION = "config.json"
_STAGED = ".new"


def save(
    net: nn.Module,
    path: str | Path,
    *,
    source: ModelSource | str | None = None,
    example_inputs: Any = None,
) -> None:
    """Save a network that :func:`lwdna.shrink`, ``rebuild`` or ``load`` made.

    The directory gets ``dna.json``, the widths and all that led to them, and
    ``model.safetensors``, the values: parameters, buffers, those that a state_dict leaves out, too.
    Before anything is written the network is rebuilt without values, and compared with ``net``:
    what :func:`load` will build is this network, or this is an error.

    A crash, or ``kill -9``, at any time leaves the old network or the new one, never parts of both.
    One process may write at a time.

    Args:
        net: the network; not changed. Of a wrapper (DDP, ``torch.compile``) pass what it wraps.
        path: directory, made if it is not there. A network in it is replaced.
        source: constructor of the model that was shrunk, ``"timm:resnet50"`` or, with arguments,
            ``lwdna.ModelSource.of("timm:resnet50", num_classes=10)``; by default what the DNA says
            of it. Models of :func:`lwdna.create` and ``timm.create_model`` say it themselves.
        example_inputs: inputs to trace on, where the DNA's do not do (see :func:`load`).

    Raises:
        SourceError: the constructor is unknown, or fails.
        DnaError: ``net`` has no DNA, or is not what its constructor and DNA give.
    """
    store(net, Path(path), DNA, source=source, example_inputs=example_inputs)


def store(
    net: nn.Module,
    folder: Path,
    configuration: str,
    *,
    source: ModelSource | str | None = None,
    example_inputs: Any = None,
) -> None:
    """:func:`save`, with a name for the file of the DNA."""
    dna = dna_of(net)
    if source is not None:
        own = ModelSource.of(source) if isinstance(source, str) else source
        dna = replace(dna, source=own)
    if dna.source is None:
        raise SourceError(
            f"nothing tells how this {dna.model} is constructed: build it by "
            "lwdna.create('library:name', ...), or name its constructor: "
            "lwdna.save(net, path, source='package.module:factory')"
        )
    at_once = _check_rebuilt(net, dna, dna.source, example_inputs)
    text = dna.to_json()
    if Dna.from_json(text) != dna:
        raise DnaError("this DNA is another one when it is read: a field holds what JSON does not")
    folder.mkdir(parents=True, exist_ok=True)
    staged = folder / f"{configuration}{_STAGED}"
    replace_file(staged, lambda path: path.write_text(text, encoding="utf-8"))
    replace_file(
        folder / WEIGHTS, lambda path: weights.write(net, path, dna.digest, at_once=at_once)
    )
    os.replace(staged, folder / configuration)
    _sync(folder)


def load(
    path: str | Path,
    *,
    device: torch.device | str = "cpu",
    trust: Sequence[str] = (),
    example_inputs: Any = None,
) -> nn.Module:
    """Load a network that :func:`save` wrote.

    The constructor builds the original model without values, the DNA gives it its widths, the file
    its values; names, shapes, types, costs and sums are compared on the way. No code comes from
    the files: what may be called is the constructors of timm and torchvision, and of the modules
    in ``trust``.

    Args:
        path: the directory (one of the Hugging Face layout will do, too).
        device: where the network goes.
        trust: names of modules (or packages of modules) whose factories may be imported and called.
        example_inputs: inputs to trace on, for a network that was captured in parts (a detector)
            and whose parts are not reached on pictures of noise: real ones, as for
            :func:`lwdna.shrink`.

    Returns:
        The network as it was saved: outputs are the same to the last bit (on the same device and
        version of PyTorch), and so are modes, gradient flags, types and the order in memory.

    Raises:
        DnaError: files that are missing, damaged, newer, or of another network.
        SourceError: the constructor is unknown here, not trusted, or fails.
    """
    folder = Path(path)
    if folder.is_file():
        raise DnaError(f"{folder} is a file: pass the directory, {folder.parent}")
    state = weights.read_state(folder / WEIGHTS)
    dna = _configuration(folder, state.dna)
    blank = structure(dna, trust, example_inputs=example_inputs, at_once=state.at_once)
    net = weights.filled(blank, folder / WEIGHTS, state, device)
    meta_of(net)["lwdna"] = dna
    return net


def read_dna(path: str | Path) -> Dna:
    """The DNA in a file, or of a network that :func:`save` wrote; no values are read.

    Args:
        path: a JSON file, or the directory of a network (the Hugging Face layout will do, too).

    Raises:
        DnaError: there is none, or it is damaged or newer.
    """
    given = Path(path)
    if given.is_dir():
        if (given / WEIGHTS).exists():
            return _configuration(given, weights.read_state(given / WEIGHTS).dna)
        given = next(
            (p for p in (given / DNA, given / HUB_CONFIGURATION) if p.exists()), given / DNA
        )
    if not given.is_file():  # to open a pipe would wait for ever
        raise DnaError(f"{given} cannot be read: there is no such file")
    try:
        return Dna.from_json(_read(given))
    except DnaError as e:
        raise DnaError(f"{given}: {e}") from e


def _check_rebuilt(net: nn.Module, dna: Dna, source: ModelSource, example_inputs: Any) -> bool:
    """Refuse a network that would not come back; whether it does when it is resized at once."""
    found: list[str] = []
    for at_once in (True, False):
        blank = structure(dna, (source.library,), example_inputs=example_inputs, at_once=at_once)
        found = list(islice(differences(net, blank), 3))
        if not found:
            return at_once
    raise DnaError(
        f"this network is not what {source} and its DNA give: {'; '.join(found)}. Name the "
        "constructor with all its arguments: source=lwdna.ModelSource.of('library:name', ...)"
    )


def _configuration(folder: Path, digest: str) -> Dna:
    """The DNA that the weights name, be it not yet in its place."""
    failed: list[DnaError] = []
    for name in (DNA, f"{DNA}{_STAGED}", HUB_CONFIGURATION, f"{HUB_CONFIGURATION}{_STAGED}"):
        path = folder / name
        try:
            if path.is_file():  # to open a pipe would wait for ever
                dna = Dna.from_json(_read(path))
                if dna.digest == digest:
                    return dna
                failed.append(DnaError(f"{path} is not the DNA of the weights beside it"))
        except DnaError as e:
            failed.append(DnaError(f"{path}: {e}"))
    raise failed[0] if failed else DnaError(f"{folder} holds no {DNA}")


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MOST_CHARACTERS:
            raise DnaError("longer than any DNA")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as e:
        raise DnaError(f"cannot be read: {type(e).__name__}: {e}") from e


def replace_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file under another name, and put it in its place when it is whole on the disk.

    Who may read it is for the umask to say, as of any new file.

    Args:
        path: of the file; there is one or not.
        write: writes to the path that it is given.
    """
    temporary = path.with_name(f".{path.name}.{token_hex(4)}.tmp")
    try:
        temporary.touch()
        mode = S_IMODE(temporary.stat().st_mode)
        write(temporary)
        temporary.chmod(mode)  # safetensors gives its files to their owner alone
        _sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def _sync(path: Path) -> None:
    """Have the system write a file, or the names in a directory, to the disk."""
    if path.is_dir() and os.name != "posix":
        return  # only POSIX opens directories
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
