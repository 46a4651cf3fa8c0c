"""The commands ``train`` and ``eval``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click


def _pairs(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    """``key=value``, the value in JSON or as text."""
    found: dict[str, Any] = {}
    for text in values:
        key, equals, value = text.partition("=")
        if not equals or not key or key in found:
            raise click.BadParameter(f"{text!r}: write key=value, each key once")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found


def _texts(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """``name=folder``."""
    return {key: str(value) for key, value in _pairs(ctx, param, values).items()}


def _common(function: Any) -> Any:
    """Options of both commands."""
    options = (
        click.argument("network"),
        click.option("--data", required=True, help="A folder, cifar10:DIR, hfds:DIR, fake ..."),
        click.option(
            "--test", "tests", multiple=True, callback=_texts, metavar="NAME=DIR",
            help="A further test set. Repeat it for more.",
        ),
        click.option("--preset", help="A published protocol; `lwdna train --presets` lists them."),
        click.option(
            "--protocol", "protocol_file", type=click.Path(path_type=Path),
            help="A protocol in a .json or .toml file.",
        ),
        click.option(
            "--set", "changes", multiple=True, metavar="KEY=VALUE",
            help="Change a setting: epochs=2, images.size=64, milestones=[1].",
        ),
        click.option(
            "--arg", "arguments", multiple=True, callback=_pairs, metavar="KEY=VALUE",
            help="Argument of the network's constructor: num_classes=10.",
        ),
        click.option("--download", is_flag=True, help="Fetch a data set that is not there."),
        click.option("--trust", multiple=True, metavar="MODULE", help="See lwdna.load."),
        click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, mps."),
        click.option("--workers", default=0, show_default=True, help="Processes that load files."),
        click.option("--threads", type=int, help="CPU threads; by default as they are."),
        click.option("--channels-last", is_flag=True, help="Order of images in memory."),
        click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout."),
    )  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def _list_presets(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    if wanted:
        from lwdna.training import PRESETS

        for name, protocol in PRESETS.items():
            click.echo(f"{name:26}{protocol.source}")
        ctx.exit()


@click.command()
@_common
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Directory of the run.")
@click.option("--resume", is_flag=True, help="Go on with what --output holds.")
@click.option("--seed", default=0, show_default=True, help="Of weights, order and changes.")
@click.option("--teacher", help="A network as NETWORK, for a protocol with distillation.")
@click.option(
    "--log", "loggers", multiple=True, default=("csv",), show_default=True,
    type=click.Choice(["csv", "tensorboard"]), help="Logs in --output. Repeat it for both.",
)  # fmt: skip
@click.option("--test-every", default=1, show_default=True, help="Epochs between tests.")
@click.option("--compile", "compiled", is_flag=True, help="Use torch.compile.")
@click.option(
    "--presets", is_flag=True, is_eager=True, expose_value=False, callback=_list_presets,
    help="List the published protocols, and exit.",
)  # fmt: skip
def train(
    network: str,
    data: str,
    output: Path | None,
    resume: bool,
    seed: int,
    teacher: str | None,
    loggers: tuple[Any, ...],
    test_every: int,
    as_json: bool,
    **given: Any,
) -> None:
    """Train NETWORK, a baseline or a shrunk one, by one protocol.

    NETWORK is timm:NAME, torchvision:NAME or package.module:FACTORY, built afresh; a dna.json, of
    whose widths a network with fresh weights is built; or a directory that `lwdna shrink` or `lwdna
    train` wrote, which starts from the values it has. Without --preset and --protocol the protocol
    is that of the run in a directory.

    \b
    lwdna train timm:resnet50 --data imagenet/ --preset imagenet-resnet50 -o baseline
    lwdna train r50/dna.json --data imagenet/ --preset imagenet-resnet50 -o lwdna
    lwdna train timm:resnet18 --arg num_classes=10 --data cifar10:data --preset cifar-resnet56 \\
        --set epochs=2 --set milestones=[1] -o short
    torchrun --nproc-per-node=4 -m lwdna.training train timm:resnet50 --data imagenet/ ...
    """  # noqa: D301 - click reads the character
    from lwdna.training import fit, open_data, open_network

    protocol = _protocol(network, given)
    opened = open_data(data, protocol, tests=given["tests"], download=given["download"])
    model = open_network(network, given["arguments"], seed=seed, trust=given["trust"])
    taught = None if teacher is None else open_network(teacher, trust=given["trust"])
    result = fit(
        model,
        protocol,
        opened,
        seed=seed,
        output=output,
        resume=resume,
        teacher=taught,
        machine=_machine(given),
        loggers=loggers,
        test_every=test_every,
    )
    metrics = {name: value for name, value in result.metrics.items() if name != "lr"}
    text = f"{_table(metrics)}\n{_next(output)}"
    _answer(json.loads(result.to_json()), text, as_json)


@click.command("eval")
@_common
def evaluate(network: str, data: str, as_json: bool, **given: Any) -> None:
    """Measure NETWORK on test sets: top-1 and top-5, or PSNR and SSIM.

    NETWORK is as for `lwdna train`. Without --preset and --protocol the protocol is that of the run
    in a directory.

    \b
    lwdna eval baseline --data imagenet/
    lwdna eval timm:resnet50 --arg pretrained=true --data imagenet/ --preset imagenet-resnet50
    lwdna eval edsr --data DIV2K/ --test Set5=Set5/ --test Set14=Set14/
    """  # noqa: D301 - click reads the character
    from lwdna.training import evaluate as measure
    from lwdna.training import open_data, open_network

    protocol = _protocol(network, given)
    opened = open_data(data, protocol, tests=given["tests"], download=given["download"])
    model = open_network(network, given["arguments"], trust=given["trust"])
    found = measure(model, protocol, opened, machine=_machine(given))
    flat = {f"{test}/{name}": v for test, row in found.items() for name, v in row.items()}
    _answer(found, _table(flat), as_json)


def _protocol(network: str, given: dict[str, Any]) -> Any:
    from lwdna.training import PRESETS, read_protocol, read_result

    preset, path = given["preset"], given["protocol_file"]
    if preset is not None and path is not None:
        raise click.UsageError("--preset and --protocol: one of them")
    if preset is not None and preset not in PRESETS:
        raise click.UsageError(f"--preset {preset}: one of {', '.join(PRESETS)}")
    if preset is not None:
        protocol = PRESETS[preset]
    elif path is not None:
        protocol = read_protocol(path)
    elif (Path(network) / "result.json").exists():
        protocol = read_result(network).protocol
    else:
        raise click.UsageError(
            f"which protocol? --preset {next(iter(PRESETS))}, or --protocol FILE"
        )
    return protocol.but(given["changes"])


def _machine(given: dict[str, Any]) -> Any:
    from lwdna.training import Machine

    return Machine(
        device=given["device"],
        workers=given["workers"],
        threads=given["threads"],
        channels_last=given["channels_last"],
        compile=given.get("compiled", False),
    )


def _table(metrics: dict[str, float]) -> str:
    from tabulate import tabulate

    return tabulate(list(metrics.items()), floatfmt=".4f", tablefmt="plain")


def _next(output: Path | None) -> str:
    if output is None:
        return "nothing was kept: name a directory with -o"
    return f"{output}/network is the trained network: lwdna.load, or `lwdna eval {output}`"


def _answer(document: Any, text: str, as_json: bool) -> None:
    from lwdna.training.machine import is_first_process

    if is_first_process():
        click.echo(json.dumps(document, indent=1) if as_json else text)


@click.group()
def main() -> None:
    """Train and measure networks."""


main.add_command(train)
main.add_command(evaluate)
