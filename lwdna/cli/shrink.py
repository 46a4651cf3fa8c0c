"""``lwdna shrink``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lwdna.cli import options
from lwdna.cli.command import Answer, command


@command(
    examples=(
        "lwdna shrink timm:resnet18 --macs 0.9 --images photos -o r18",
        "lwdna shrink timm:resnet50 --flops 90.6% --params 23M --images imagenet -o r50",
        "lwdna shrink timm:mobilenetv3_small_100 --arg num_classes=10 --macs 40M \\",
        "    --images photos --divisor 8 --floor 0.4 -o small",
        "lwdna shrink timm:resnet18 --arg pretrained=true --widen 1 --weights inherit \\",
        "    --macs 0.7 --criterion taylor --images photos -o pruned",
        "lwdna shrink my_models:super_resolution --macs 0.8 --criterion magnitude -o sr",
        "lwdna shrink timm:resnet18 --macs 0.9 --fake-data   # a dry run: nothing is saved",
    )
)
@click.argument("model", metavar="MODEL")
@options.arguments
@options.inputs
@options.budgets
@click.option(
    "--latency-table",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="What `lwdna latency` wrote, for --latency.",
)
@click.option(
    "--images",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder with a folder of images per class (or a data set with such in train). Read as "
    "for evaluation; only as many as are scored.",
)
@click.option("--fake-data", is_flag=True, help="Score on noise: a dry run.")
@click.option(
    "--criterion",
    default="latent-grad",
    show_default=True,
    metavar="NAME",
    help="What a channel is worth: see `lwdna criteria`.",
)
@options.pairs(
    "--criterion-arg", "criterion_arguments", "Option of the criterion: normalize=false."
)
@click.option(
    "--allocation",
    type=click.Choice(["balanced", "threshold", "saliency-per-cost"]),
    default="balanced",
    show_default=True,
    help="How groups share the budget: one threshold, tilted so that all limits are used; the "
    "paper's one threshold; or what a channel is worth against what it costs.",
)
@click.option("--batches", type=click.IntRange(1), default=2, show_default=True, help="To score.")
@click.option(
    "--batch-size", type=click.IntRange(1), default=16, show_default=True, help="Images in each."
)
@click.option(
    "--micro-batch", type=click.IntRange(1), help="Images at a time, where memory is short."
)
@options.widening
@click.option(
    "--weights",
    type=click.Choice(["hyper", "fresh", "inherit"]),
    help="Of the result: generated as in the paper, drawn afresh, or the model's own, sliced. By "
    "default what suits the network: see lwdna.shrink.",
)
@options.seed
@options.device
@options.output("Directory for the network: dna.json and model.safetensors.")
@options.force
def shrink(
    model: str,
    arguments: Any,
    shapes: Any,
    output: Path | None,
    force: bool,
    images: Path | None,
    fake_data: bool,
    **given: Any,
) -> Answer:
    """Find the layer-wise widths of a network within a budget; nothing is trained.

    Widens the network, scores its channels on a couple of batches, and removes the least salient
    ones until every limit is met. A limit is a fraction of the model's own cost (0.9, 90%) or
    absolute (25M). Give at least one.

    The command line scores classifiers on images with labels. For networks of other tasks
    (restoration, segmentation) choose a criterion that needs no data, or call lwdna.shrink in
    Python with a loss of yours; detectors need Python, too.
    """
    if not any(given[name] is not None for name in options.LIMITS):
        raise click.UsageError("give a budget, such as --macs 0.9")
    if images is not None and fake_data:
        raise click.UsageError("--images and --fake-data: one of them")
    if (given["latency"] is None) != (given["latency_table"] is None):
        raise click.UsageError("--latency and --latency-table go together: see `lwdna latency`")
    options.check_free(output, force=force, names=options.SAVED)
    from lwdna.cli import saving

    net = _shrunk(model, arguments, shapes, images, fake_data, given)
    return saving.saved(net, output)


def _shrunk(
    name: str,
    arguments: dict[str, Any],
    shapes: Any,
    images: Path | None,
    fake_data: bool,
    given: dict[str, Any],
) -> Any:
    import lwdna
    from lwdna.cli import models

    models.check_constructor(name)
    models.check_device(given["device"])
    criterion = lwdna.get_criterion(given["criterion"], **given["criterion_arguments"])
    if criterion.data and images is None and not fake_data:
        raise click.UsageError(
            f"--criterion {criterion.name} looks at data: pass --images DIR, or --fake-data for a "
            "dry run, or a criterion that needs none (`lwdna criteria`)"
        )
    if fake_data and criterion.data:
        click.echo("FAKE DATA: channels are scored on noise; do not use this network", err=True)
    settings: dict[str, Any] = {
        "widen": options.widen_of(given),
        "criterion": criterion,
        "scoring": lwdna.Scoring(batches=given["batches"], micro_batch=given["micro_batch"]),
        "constraints": options.constraints_of(given),
        "allocation": given["allocation"],
        "weights": given["weights"],
        "policy": given["policy"],
        "seed": given["seed"],
        "device": given["device"],
    }
    if given["latency_table"] is not None:
        settings["latency"] = lwdna.LatencyTable.load(given["latency_table"])
    budget = options.budget_of(given)
    assert budget is not None
    net = models.constructed(name, arguments, seed=given["seed"])
    if images is not None:
        settings["data"] = _batches(images, net, shapes, given)
    else:
        settings["example_inputs"] = models.example(net, shapes)
    return lwdna.shrink(net, budget, **settings)


def _batches(folder: Path, net: Any, shapes: Any, given: dict[str, Any]) -> Any:
    from lwdna.cli import images

    if len(shapes) > 1:
        raise click.UsageError("--images: a network of one input; it has several --input")
    return images.batches(
        folder,
        net,
        shapes[0] if shapes else None,
        count=given["batches"],
        batch_size=given["batch_size"],
        seed=given["seed"],
    )
