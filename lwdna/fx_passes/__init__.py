"""The passes over torch.fx graphs. Nothing here imports ``lwdna.scoring``."""
