"""``lwdna latency``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from lwdna.cli import options
from lwdna.cli.command import Answer, command


@command(
    examples=(
        "lwdna latency timm:resnet18 -o resnet18.json",
        "lwdna latency timm:resnet50 --device cuda --batch-size 64 --channels-last -o r50.json",
        "lwdna shrink timm:resnet18 --latency 0.8 --latency-table resnet18.json \\",
        "    --widen 1 --images photos -o fast",
    )
)
@options.of_model
@click.option(
    "--batch-size", type=click.IntRange(1), default=1, show_default=True, help="To be fast at."
)
@click.option("--device", default="cpu", show_default=True, help="To be fast on.")
@options.channels_last
@click.option(
    "--widen", type=float, default=1.0, show_default=True, help="What you will shrink with."
)
@click.option(
    "--divisor", type=click.IntRange(1), help="Of the widths; by default what the device likes."
)
@click.option(
    "--configurations", type=click.IntRange(4), default=16, show_default=True, help="To measure."
)
@click.option(
    "--repeats", type=click.IntRange(1), default=5, show_default=True, help="The median counts."
)
@options.seed
@options.output("For the table, for `lwdna shrink --latency-table`.", file=True, required=True)
@options.force
def latency(
    model: str,
    arguments: Any,
    shapes: Any,
    trust: Any,
    batch_size: int,
    device: str,
    channels_last: bool,
    output: Path,
    force: bool,
    **measuring: Any,
) -> Answer:
    """Measure what each operator of a network takes on this machine, at several widths.

    Takes minutes. Do nothing else on the machine meanwhile.
    """
    options.check_free(output, force=force)
    import torch

    import lwdna
    from lwdna.cli import models
    from lwdna.files import replace_file

    models.check_device(device)
    net = models.network(model, arguments, trust=trust, seed=measuring["seed"])
    order = torch.channels_last if channels_last else torch.contiguous_format
    net = net.to(device).to(memory_format=order)
    inputs = tuple(
        t.to(device, memory_format=order if t.dim() == 4 else torch.contiguous_format)
        for t in models.example(net, shapes, batch=batch_size, seed=measuring["seed"])
    )
    table = lwdna.measure_latency(net, inputs, **measuring)
    replace_file(output, table.save)
    setting = table.setting
    text = (
        f"{len(table.operators)} operators on {setting.device}, largest error "
        f"{table.error:.1%}; saved in {output}. Next:\n"
        f"  lwdna shrink {model} --latency 0.8 --latency-table {output} "
        f"--widen {measuring['widen']:g} ..."
    )
    document = {
        "saved": str(output),
        "operators": len(table.operators),
        "error": table.error,
        "setting": asdict(setting),
    }
    return Answer(document, text)
