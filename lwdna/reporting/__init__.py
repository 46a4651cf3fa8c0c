"""Reports: figures of a DNA, and one self-contained HTML page of them."""

from lwdna.reporting.page import report

__all__ = ["report"]
