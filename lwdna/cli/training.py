"""Commands that train and measure: train, eval, presets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from lwdna.cli import options
from lwdna.cli.command import Answer, command

#: What a run keeps after each epoch: see :mod:`lwdna.training.checkpoint`.
_CHECKPOINT = "checkpoint.pt"

_of_run = options.options(
    click.argument("network", metavar="NETWORK"),
    options.arguments,
    options.trust,
    click.option(
        "--data",
        required=True,
        metavar="DATA",
        help="A folder with train/ and val/, cifar10:DIR, cifar100:DIR, fashion-mnist:DIR, "
        "hfds:DIR_OR_NAME of Hugging Face, a folder of pictures; or fake, noise to try a command.",
    ),
    options.pairs(
        "--test",
        "tests",
        "A further test set. Repeat it for more.",
        metavar="NAME=DIR",
        read=options.named_folder,
    ),
    click.option("--download", is_flag=True, help="Fetch a data set that is not there."),
    click.option("--preset", metavar="NAME", help="A published protocol: see `lwdna presets`."),
    click.option(
        "--protocol",
        "file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="A protocol of yours, .json or .toml.",
    ),
    click.option(
        "--set",
        "changes",
        multiple=True,
        metavar="KEY=VALUE",
        help="Change a setting: epochs=2, images.size=64, 'milestones=[1]'. Repeat it for more.",
    ),
    options.device,
    click.option(
        "--workers",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        help="Processes that read files.",
    ),
    click.option("--threads", type=click.IntRange(1), help="Of the CPU; by default as they are."),
    options.channels_last,
)


@command(
    shared=True,
    examples=(
        "lwdna train timm:resnet50 --data imagenet --preset imagenet-resnet50 -o baseline",
        "lwdna train r50/dna.json --data imagenet --preset imagenet-resnet50 -o small",
        "lwdna train timm:resnet18 --arg num_classes=10 --data fake --preset cifar-resnet56 \\",
        "    --set epochs=2 --set 'milestones=[1]' -o try   # noise, two epochs: does it run?",
        "lwdna train r50/dna.json --data imagenet --preset imagenet-resnet50 -o small --resume",
        "lwdna train mobile/dna.json --data tiny --preset tiny-imagenet-mobilenet \\",
        "    --teacher baseline -o taught",
        "lwdna train timm:resnet18 --data tiny --preset tiny-imagenet-mobilenet -o taught \\",
        "    --arg num_classes=200 --teacher my_models:teacher --teacher-arg width=2",
        "torchrun --nproc-per-node=4 -m lwdna train timm:resnet50 --data imagenet \\",
        "    --preset imagenet-resnet50 --workers 8 -o baseline",
    ),
)
@_of_run
@click.option("--compile", "compiled", is_flag=True, help="Use torch.compile.")
@options.output("Directory for the network, its checkpoint, the result and the logs.")
@click.option("--resume", is_flag=True, help="Go on with what --output holds.")
@options.seed
@click.option(
    "--teacher",
    metavar="NETWORK",
    help="For a protocol with distillation; as NETWORK, often a run.",
)
@options.pairs("--teacher-arg", "teacher_arguments", "--arg of the teacher. Repeat it for more.")
@click.option(
    "--log",
    "loggers",
    multiple=True,
    type=click.Choice(["csv", "tensorboard"]),
    help="Logs in --output. Repeat it for both.  [default: csv]",
)
@click.option(
    "--test-every",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Epochs between tests.",
)
def train(
    network: str,
    arguments: Any,
    data: str,
    compiled: bool,
    output: Path | None,
    resume: bool,
    seed: int,
    teacher: str | None,
    teacher_arguments: Any,
    loggers: Any,
    test_every: int,
    **given: Any,
) -> Answer:
    """Train a network, a baseline or a shrunk one, by one protocol.

    NETWORK is timm:NAME, torchvision:NAME or package.module:FACTORY, built afresh; a dna.json, of
    whose widths a network with fresh weights is built; or a directory that `lwdna shrink` or `lwdna
    train` wrote, which starts from the values it has. Same data, protocol and seed: same images, in
    the same order.

    Without --preset and --protocol the protocol is that of the run in a directory. A run that was
    stopped, by Ctrl-C or a crash, goes on with --resume, and comes to the same weights.
    """
    _check_output(output, resume=resume, loggers=loggers)
    if teacher is None and teacher_arguments:
        raise click.UsageError("--teacher-arg: name the network by --teacher")
    from lwdna.training import fit

    protocol, machine = _protocol(network, given), _machine(given, compiled)
    model = _opened(network, arguments, given["trust"], seed)
    taught = None
    if teacher is not None:
        taught = _opened(teacher, teacher_arguments, given["trust"], option="--teacher-arg")
    result = fit(
        model,
        protocol,
        _data(data, protocol, machine, given),
        seed=seed,
        output=output,
        resume=resume,
        teacher=taught,
        machine=machine,
        loggers=loggers or ("csv",),
        test_every=test_every,
    )
    metrics = {name: value for name, value in result.metrics.items() if name != "lr"}
    return Answer(json.loads(result.to_json()), f"{_table(metrics)}\n\n{_next(output)}")


@command(
    name="eval",
    shared=True,
    examples=(
        "lwdna eval baseline --data imagenet",
        "lwdna eval timm:resnet50 --arg pretrained=true --data imagenet \\",
        "    --preset imagenet-resnet50 --json",
        "lwdna eval edsr --data DIV2K --test Set5=images/Set5 --test Set14=images/Set14",
    ),
)
@_of_run
def evaluate(network: str, arguments: Any, data: str, **given: Any) -> Answer:
    """Measure a network on test sets: top-1 and top-5, or PSNR and SSIM.

    NETWORK is as for `lwdna train`. Without --preset and --protocol the protocol, which says how
    images are prepared, is that of the run in a directory.
    """
    from lwdna.training import evaluate as measure

    protocol, machine = _protocol(network, given), _machine(given)
    model = _opened(network, arguments, given["trust"])
    found = measure(model, protocol, _data(data, protocol, machine, given), machine=machine)
    flat = {f"{test}/{name}": v for test, row in found.items() for name, v in row.items()}
    return Answer(found, _table(flat))


@command(examples=("lwdna presets", "lwdna presets --json   # all settings of each"))
def presets() -> Answer:
    """List the published training protocols: names for `lwdna train --preset`.

    Settings are changed with --set. For a protocol of your own, write the settings of one to a
    file, and pass it as --protocol.
    """
    from lwdna.cli import tables
    from lwdna.training import PRESETS

    rows = [(p.name, p.task, str(p.epochs), str(p.batch), p.source) for p in PRESETS.values()]
    headers = ("preset", "task", "epochs", "batch", "source")
    document = {"presets": [json.loads(p.to_json()) for p in PRESETS.values()]}
    return Answer(document, tables.table(rows, headers, texts=len(headers)))


def _check_output(output: Path | None, *, resume: bool, loggers: Any) -> None:
    if output is None and (resume or loggers):
        option = "--resume" if resume else "--log"
        raise click.UsageError(f"{option}: name the directory of the run with -o")
    remedy = "--resume goes on with it"
    options.check_free(output, force=resume, names=(_CHECKPOINT,), remedy=remedy)


def _protocol(network: str, given: Mapping[str, Any]) -> Any:
    """The protocol that the options say; of a run its own."""
    from lwdna.training import PRESETS, read_protocol, read_result

    preset, file = given["preset"], given["file"]
    if preset is not None and file is not None:
        raise click.UsageError("--preset and --protocol: one of them")
    if preset is not None and preset not in PRESETS:
        raise click.UsageError(f"--preset {preset}: one of {', '.join(PRESETS)}")
    if preset is not None:
        protocol = PRESETS[preset]
    elif file is not None:
        protocol = read_protocol(file)
    elif (Path(network) / "result.json").exists():
        protocol = read_result(network).protocol
    else:
        first = next(iter(PRESETS))
        raise click.UsageError(f"which protocol? --preset {first}, or --protocol FILE")
    return _changed(protocol, given["changes"])


def _changed(protocol: Any, changes: Any) -> Any:
    from lwdna import TrainingError

    try:
        return protocol.but(changes)
    except TrainingError as e:
        raise click.UsageError(f"--set: {e}") from e


def _machine(given: Mapping[str, Any], compiled: bool = False) -> Any:
    """What to compute on; of several processes this one leaves the others when it ends."""
    from lwdna.cli import models
    from lwdna.training import Machine
    from lwdna.training.machine import leave

    models.check_device(given["device"])
    click.get_current_context().call_on_close(leave)
    return Machine(
        device=given["device"] or "auto",
        workers=given["workers"],
        threads=given["threads"],
        channels_last=given["channels_last"],
        compile=compiled,
    )


def _opened(
    name: str, arguments: dict[str, Any], trust: Any, seed: int = 0, option: str = "--arg"
) -> Any:
    from lwdna.cli import models
    from lwdna.training import open_network

    if Path(name).exists():
        models.check_built(name, arguments, option)
        models.look_here(trust)
    else:
        models.check_constructor(name)
        models.look_here((*trust, name.partition(":")[0]))
    return open_network(name, arguments, seed=seed, trust=trust)


def _data(name: str, protocol: Any, machine: Any, given: Mapping[str, Any]) -> Any:
    from lwdna.training import open_data

    tests, download = given["tests"], given["download"]
    return open_data(name, protocol, tests=tests, download=download, machine=machine)


def _table(metrics: Mapping[str, float]) -> str:
    from lwdna.cli import tables

    rows = [(name, f"{value:.4f}") for name, value in metrics.items()]
    return tables.table(rows, ("metric", "value"))


def _next(output: Path | None) -> str:
    if output is None:
        return "nothing was kept: name a directory with -o"
    return f"{output}/network is the trained network: lwdna.load, or `lwdna eval {output}`"
