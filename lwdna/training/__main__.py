"""``python -m lwdna.training train ...``, which torchrun can start, too."""

from __future__ import annotations

import sys

import click

from lwdna.errors import LwdnaError
from lwdna.training.cli import main
from lwdna.training.machine import leave

if __name__ == "__main__":
    try:
        main()
    except LwdnaError as e:
        click.echo(f"Error: {e}", err=True)
        sys.exit(3)
    finally:
        leave()
