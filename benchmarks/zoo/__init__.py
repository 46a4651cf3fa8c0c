"""The sweep over every model of timm and torchvision; see ``python -m benchmarks.zoo --help``."""
