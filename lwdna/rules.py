"""Declarations for code that the analysis does not know: docs/support.md shows each in use.

- :func:`rule`: which channels of an operator's inputs and outputs are the same channels.
- :func:`repairs`: how a function's literals that mean channel counts follow a resizing.
- :func:`resizes`: keep a module type whole, and say how it notes the widths of its new tensors.
- :func:`couples`: what ties the channels of such a module beyond its operators.

What nobody has declared is frozen, never guessed.
"""

from lwdna.fx_passes.literals import Repair, repairs
from lwdna.fx_passes.modules import couples, resizes
from lwdna.fx_passes.rules import OpCall
from lwdna.fx_passes.rules.registry import rule

__all__ = ["OpCall", "Repair", "couples", "repairs", "resizes", "rule"]
