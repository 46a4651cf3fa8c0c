"""Progress: a bar over the stages of a job."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def stages(names: Sequence[str], *, progress: bool = True) -> Iterator[Callable[[str], None]]:
    """A progress bar over the stages of a job; silent where stderr is no terminal.

    Args:
        names: of the stages, in order.
        progress: ``False`` for no bar.

    Yields:
        ``stage(name)``, to be called as each stage begins.
    """
    silent = not (progress and sys.stderr.isatty())
    with tqdm(total=len(names), disable=silent, leave=False, unit="stage") as bar:

        def stage(name: str) -> None:
            bar.update(names.index(name) - bar.n)
            bar.set_description(f"lwdna: {name}")

        yield stage
