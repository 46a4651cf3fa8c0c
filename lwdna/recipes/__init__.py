"""The paper's experiments as data: network, widening, floors, budget, protocol, published figures.

>>> lwdna.recipes.get("resnet50-imagenet").budget
Budget(macs=None, params=None, flops_paper=0.906)
"""

from lwdna.recipes.rows import get, names
from lwdna.recipes.types import Complexity, Distillation, Protocol, Published, Quality, Recipe

__all__ = [
    "Complexity",
    "Distillation",
    "Protocol",
    "Published",
    "Quality",
    "Recipe",
    "get",
    "names",
]
