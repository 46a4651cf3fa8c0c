"""Export of captured and shrunk networks as files that need no lwdna."""

from lwdna.export.source import export_source

__all__ = ["export_source"]
