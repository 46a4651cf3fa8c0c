"""The hypothesis on trial: networks of equal cost, trained by one protocol.

``python -m benchmarks.compare TABLE.toml --data DIR``; see docs/comparison.md.
"""
