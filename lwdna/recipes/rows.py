"""The rows. Figures are as printed; ``docs/recipes.md`` says what our counter makes of them.

Source: the publications named in each row, and the code their authors released.
"""

from __future__ import annotations

from typing import Literal

from lwdna.budget import Budget
from lwdna.constraints import Floors
from lwdna.recipes import protocols
from lwdna.recipes.protocols import DHP, HH
from lwdna.recipes.types import Complexity, Protocol, Published, Quality, Recipe

#: The one published command: --remain_percentage 0.4 --linear_percentage 0.45.
_RESNET_FLOORS = Floors(fraction=0.4, absolute=1, classifier=0.45)
#: The released code's default, 4 channels, with the classifier's 0.45 of the MobileNet scripts.
_MINIMUM = Floors(fraction=0.0, absolute=4, classifier=0.45)
#: Image-to-image networks: the last layer is no classifier, the default of 4 channels holds.
_IMAGE_FLOORS = Floors(fraction=0.0, absolute=4, classifier=0.0)
#: Where no LW-DNA figures are published: our choice, about that of the published ones.
_OUR_BUDGET = Budget(flops_paper=0.9)


def names() -> tuple[str, ...]:
    """The names of the recipes, in the order of the paper's tables."""
    return tuple(_RECIPES)


def get(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        ValueError: there is none; lists the names.

    >>> get("edsr-x4").published.lwdna
    Complexity(flops=55.44, params=2.84)
    """
    if name not in _RECIPES:
        raise ValueError(f"recipe {name!r}: one of {', '.join(_RECIPES)}")
    return _RECIPES[name]


def _budget(published: Published) -> Budget:
    """The published ratio.

    The smaller of the printed ratio and of the printed figures' quotient, which differ in their
    last digit: the result costs no more than either.
    """
    assert published.baseline and published.lwdna and published.flops_ratio
    quotient = published.lwdna.flops / published.baseline.flops
    return Budget(flops_paper=min(published.flops_ratio, quotient))


def _error(dataset: str, baseline: float, lwdna: float) -> tuple[Quality, ...]:
    return (Quality(dataset, "top-1 error", "%", baseline, lwdna),)


def _psnr(
    datasets: tuple[str, ...], baseline: tuple[float, ...], lwdna: tuple[float | None, ...]
) -> tuple[Quality, ...]:
    rows = zip(datasets, baseline, lwdna, strict=True)
    return tuple(Quality(dataset, "PSNR", "dB", a, b) for dataset, a, b in rows)


def _tracking(
    dataset: str, baseline: tuple[float, ...], lwdna: tuple[float, ...]
) -> tuple[Quality, ...]:
    rows = zip(("precision", "normalized precision", "AUC"), baseline, lwdna, strict=True)
    return tuple(Quality(dataset, measure, "%", a, b) for measure, a, b in rows)


def _classifier(
    name: str,
    source: str,
    side: int,
    published: Published,
    protocol: Protocol | None,
    floors: Floors = _MINIMUM,
) -> Recipe:
    return Recipe(
        name=name,
        task="classification",
        source=source,
        input_shape=(3, side, side),
        budget=_budget(published),
        floors=floors,
        published=published,
        protocol=protocol,
        loss="cross_entropy",
    )


def _image_to_image(
    name: str,
    task: Literal["super-resolution", "denoising"],
    source: str,
    published: Published,
    protocol: Protocol,
) -> Recipe:
    return Recipe(
        name=name,
        task=task,
        source=source,
        input_shape=(3 if task == "super-resolution" else 1, 128, 128),
        budget=_budget(published) if published.lwdna else _OUR_BUDGET,
        floors=_IMAGE_FLOORS,
        published=published,
        protocol=protocol,
        loss="l1",
    )


_SR_SETS = ("Set5", "Set14", "B100", "Urban100", "DIV2K")
_NOISE_SETS = ("BSD68", "DIV2K")

_ROWS = (
    _classifier(
        "resnet50-imagenet",
        "torchvision:resnet50",
        224,
        Published(
            HH,
            _error("ImageNet", 23.28, 23.00),
            Complexity(4.1177, 25.557),
            Complexity(3.7307, 23.741),
            0.9060,
            0.9290,
        ),
        protocols.IMAGENET,
        _RESNET_FLOORS,
    ),
    _classifier(
        "regnetx-4gf-imagenet",
        "timm:regnetx_040",
        224,
        Published(
            HH,
            _error("ImageNet", 23.05, 22.74),
            Complexity(4.0005, 22.118),
            Complexity(3.8199, 15.285),
            0.9549,
            0.6910,
        ),
        None,
    ),
    _classifier(
        "mobilenetv3-small-imagenet",
        "benchmarks.mobilenets:mobilenetv3_small",
        224,
        Published(
            HH,
            _error("ImageNet", 34.91, 34.84),
            Complexity(0.0612),
            Complexity(0.0605),
            0.9886,
        ),
        None,
    ),
    _classifier(
        "mobilenetv1-tinyimagenet",
        "benchmarks.mobilenets:mobilenetv1",
        64,
        Published(
            HH,
            _error("Tiny-ImageNet", 51.87, 48.00),
            Complexity(0.0478),
            Complexity(0.0478),
            1.0,
        ),
        protocols.TINY_IMAGENET,
    ),
    _classifier(
        "mobilenetv2-tinyimagenet",
        "benchmarks.mobilenets:mobilenetv2",
        64,
        Published(
            HH,
            _error("Tiny-ImageNet", 41.25, 40.74),
            Complexity(0.0930),
            Complexity(0.0872),
            0.9376,
        ),
        protocols.TINY_IMAGENET,
    ),
    _image_to_image(
        "srresnet-x4",
        "super-resolution",
        "benchmarks.restoration:srresnet",
        Published(
            HH,
            _psnr(
                _SR_SETS,
                (32.02, 28.50, 27.52, 25.88, 28.84),
                (32.07, 28.51, 27.52, 25.88, 28.85),
            ),
            Complexity(32.81, 1.53),
            Complexity(28.79, 1.36),
            0.8775,
            0.8843,
        ),
        protocols.SRRESNET,
    ),
    _image_to_image(
        "edsr-x4",
        "super-resolution",
        "benchmarks.restoration:edsr",
        Published(
            HH,
            _psnr(
                _SR_SETS,
                (32.10, 28.55, 27.55, 26.02, 28.93),
                (32.13, 28.61, 27.59, 26.09, 28.99),
            ),
            Complexity(90.37, 3.70),
            Complexity(55.44, 2.84),
            0.6134,
            0.7694,
        ),
        protocols.EDSR,
    ),
    Recipe(
        name="dimp-resnet50",
        task="tracking",
        source="timm:resnet50",
        options=(("features_only", True), ("out_indices", (2, 3))),  # the layers that DiMP reads
        input_shape=(3, 288, 288),
        budget=_OUR_BUDGET,
        floors=_RESNET_FLOORS,
        published=Published(
            HH,
            (
                *_tracking("TrackingNet", (68.06, 79.70, 73.77), (68.27, 79.64, 73.83)),
                *_tracking("LaSOT", (54.97, 63.70, 55.87), (57.30, 65.82, 57.43)),
            ),
        ),
        protocol=protocols.DIMP,
        loss=None,
    ),
    _image_to_image(
        "dncnn-denoising",
        "denoising",
        "benchmarks.restoration:dncnn",
        Published(DHP, _psnr(_NOISE_SETS, (24.93, 26.73), (None, None)), Complexity(9.13, 0.56)),
        protocols.DNCNN,
    ),
    _image_to_image(
        "unet-denoising",
        "denoising",
        "benchmarks.restoration:unet",
        Published(DHP, _psnr(_NOISE_SETS, (25.17, 27.17), (None, None)), Complexity(3.41, 7.76)),
        protocols.UNET,
    ),
)
_RECIPES = {recipe.name: recipe for recipe in _ROWS}
