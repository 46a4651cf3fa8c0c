"""Pictures as super-resolution and denoising have them: patches to train on, whole ones to test."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from lwdna.errors import TrainingError
from lwdna.training.data import Pictures
from lwdna.training.preparation import Patches
from lwdna.training.randomness import Draw, generator

#: Sets the noise of test pictures apart from that of training patches; the same in every run.
_OF_TESTS = 2


def smaller(picture: Tensor, scale: int) -> Tensor:
    """A picture reduced by a bicubic filter, as super-resolution's inputs are made.

    Args:
        picture: uint8, (C, H, W); sides are multiples of ``scale``.
        scale: factor.

    Returns:
        uint8, (C, H / scale, W / scale).

    Source: the filter is MATLAB's imresize, a = -0.5, widened by the scale; PyTorch's
    ``interpolate`` with ``antialias`` has the same but at the picture's border.
    """
    size = [side // scale for side in picture.shape[1:]]
    small = F.interpolate(picture[None].float(), size, mode="bicubic", antialias=True)
    return small[0].round().clamp(0, 255).byte()


class _Pairs(Dataset[Any]):
    """Pictures, trimmed to multiples of the scale, and what the network sees of them."""

    def __init__(self, source: Pictures, settings: Patches) -> None:
        if source.channels != settings.channels:
            raise TrainingError(
                f"pictures of {source.channels} channels, and a protocol with "
                f"patches.channels={settings.channels}"
            )
        self.source, self.settings = source, settings
        self._small: dict[int, Tensor] = {}

    def _target(self, index: int) -> Tensor:
        picture, scale = self.source[index], self.settings.scale
        height, width = (side - side % scale for side in picture.shape[1:])
        return picture[:, :height, :width]

    def _input(self, index: int) -> Tensor:
        if self.settings.scale == 1:
            return self._target(index)
        if index not in self._small:
            self._small[index] = smaller(self._target(index), self.settings.scale)
        return self._small[index]

    def _finished(self, small: Tensor, target: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
        """Noise, and white at the protocol's value; float32."""
        unit = self.settings.white / 255
        x, y = small.float() * unit, target.float() * unit
        if self.settings.sigma:
            x = x + torch.randn(x.shape, generator=g) * (self.settings.sigma * unit)
        return x, y


class PatchSet(_Pairs):
    """Random patches: input, float32 (C, size / scale, size / scale), and target (C, size, size).

    Args:
        source: the pictures; all are read here, once, so that worker processes share their memory.
        settings: of the protocol.

    Raises:
        TrainingError: a picture cannot be read, or is smaller than a patch.
    """

    def __init__(self, source: Pictures, settings: Patches) -> None:
        super().__init__(source, settings)
        for n in range(len(source)):
            if min(self._input(n).shape[1:]) < settings.size // settings.scale:
                raise TrainingError(
                    f"picture {n} is {tuple(source[n].shape[1:])} pixels, and patches.size="
                    f"{settings.size}: take smaller patches or larger pictures"
                )

    def __len__(self) -> int:
        return self.settings.per_epoch

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """Input and target of one patch."""
        index, g = draw.number % len(self.source), generator(*draw)
        small, target, scale = self._input(index), self._target(index), self.settings.scale
        side = self.settings.size // scale
        top, left = (
            int(torch.randint(extent - side + 1, (), generator=g)) for extent in small.shape[1:]
        )
        x = small[:, top : top + side, left : left + side]
        y = target[:, top * scale : (top + side) * scale, left * scale : (left + side) * scale]
        if self.settings.flips:
            down, across, transposed = (torch.rand(3, generator=g) < 0.5).tolist()
            x, y = (_turned(patch, down, across, transposed) for patch in (x, y))
        return self._finished(x, y, g)


class PictureSet(_Pairs):
    """Whole pictures to test on: input and target, float32 (C, H, W); noise is always the same.

    Args:
        source: the pictures.
        settings: of the protocol.
    """

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """Input and target of one picture."""
        g = generator(draw.number, _OF_TESTS)
        return self._finished(self._input(draw.number), self._target(draw.number), g)


def _turned(patch: Tensor, down: bool, across: bool, transposed: bool) -> Tensor:
    patch = patch.flip([dim for dim, flips in ((1, down), (2, across)) if flips])
    return patch.transpose(1, 2) if transposed else patch
