"""Commands that ask about one network: explain, attainable, cost, verify."""

from __future__ import annotations

from dataclasses import asdict
from fnmatch import fnmatchcase
from typing import Any

import click

from lwdna.cli import options
from lwdna.cli.command import Answer, command


@command(
    examples=(
        "lwdna explain timm:resnet18",
        "lwdna explain timm:vit_tiny_patch16_224 --group 'blocks.0.*'",
        "lwdna explain torchvision:swin_t --frozen",
        "lwdna explain my_models:build --arg depth=4 --input 1x64x64 --json",
    )
)
@options.of_model
@click.option("--group", "patterns", multiple=True, metavar="PATTERN", help="These groups only.")
@click.option("--frozen", is_flag=True, help="Only groups that cannot be shrunk.")
@options.policy
def explain(
    model: str,
    arguments: Any,
    shapes: Any,
    trust: Any,
    patterns: tuple[str, ...],
    frozen: bool,
    policy: str,
) -> Answer:
    """List the channel groups of a network: what can be shrunk, what cannot, and why.

    A group is a set of channels that live or die together: the width of a stage of a ResNet, the
    head size of an attention. Its name, that of the first layer which produces it, is what
    --widen, --freeze and --divisor take.
    """
    from lwdna.explanation import Explanation, explain_graph

    _, graph = _analysed(model, arguments, shapes, trust, policy)
    found = explain_graph(graph)
    rows = tuple(
        row
        for row in found.rows
        if not (frozen and row.prunable)
        and (not patterns or any(fnmatchcase(row.group, p) for p in patterns))
    )
    if patterns and not rows and not frozen:
        raise click.UsageError(f"--group {' '.join(patterns)} matches no group of {model}")
    document = {"cost": graph.cost().as_dict(), "groups": [asdict(row) for row in rows]}
    return Answer(document, str(Explanation(rows, graph)))


@command(
    examples=(
        "lwdna cost timm:resnet50",
        "lwdna cost timm:resnet50 --input 3x160x160",
        "lwdna cost torchvision:r3d_18 --input 3x16x112x112",
        "lwdna cost r18 --json",
    )
)
@options.of_model
def cost(model: str, arguments: Any, shapes: Any, trust: Any) -> Answer:
    """Count MACs, the paper's FLOPs, parameters and activations, for one input.

    No weight is made or downloaded. MACs are those of convolutions, linear layers and matrix
    products; the paper's FLOPs count batch norms and ReLUs, too.
    """
    from lwdna.cli import tables

    _, graph = _analysed(model, arguments, shapes, trust, "auto")
    found = graph.cost()
    return Answer({"model": model, **found.as_dict()}, tables.costs(found))


@command(
    examples=(
        "lwdna attainable timm:resnet50",
        "lwdna attainable timm:resnet50 --widen 1 --divisor 8",
        "lwdna attainable timm:resnet50 --macs 0.2 --floor 0.4   # exit code 1: out of reach",
    )
)
@options.of_model
@options.budgets
@options.widening
def attainable(model: str, arguments: Any, shapes: Any, trust: Any, **given: Any) -> Answer:
    """Say which costs `shrink` can come to with the same options; nothing is scored.

    With a budget, the question is whether it is within reach.
    """
    import lwdna
    from lwdna.budget import check_attainable
    from lwdna.cli import tables

    if given["latency"] is not None:
        raise click.UsageError("--latency: only shrink knows it, from --latency-table")
    budget, constraints = options.budget_of(given), options.constraints_of(given)
    captured, graph = _analysed(model, arguments, shapes, trust, given["policy"])
    before = graph.cost()
    found = lwdna.attainable(
        captured,
        widen=options.widen_of(given),
        constraints=constraints,
        policy=given["policy"],
        example_inputs=graph.inputs,
    )
    document: dict[str, Any] = {"before": before.as_dict(), "attainable": found}
    text = tables.ranges(found, before)
    if budget is None:
        return Answer(document, text)
    limits = budget.limits(before)
    try:
        check_attainable(limits, found, before)
    except lwdna.BudgetError as e:
        return Answer(
            {**document, "limits": limits, "within": False}, f"{text}\n\nno: {e}", yes=False
        )
    return Answer({**document, "limits": limits, "within": True}, f"{text}\n\nwithin reach")


@command(
    examples=(
        "lwdna verify timm:resnet18",
        "lwdna verify my_models:build --input 3x64x64",
        "lwdna verify r18 --keep 0.5 --seed 1 --json",
    )
)
@options.of_model
@click.option(
    "--keep", type=float, default=0.7, show_default=True, help="Share of each group that stays."
)
@options.policy
@options.seed
def verify(
    model: str, arguments: Any, shapes: Any, trust: Any, keep: float, policy: str, seed: int
) -> Answer:
    """Check on a network all that lwdna promises, with channels removed at random.

    Among it: what is kept computes what the original does with the other channels masked, costs
    are as predicted, the model is untouched, and the result trains. Exit code 1 if a promise does
    not hold: please report it.
    """
    import lwdna
    from lwdna.cli import models
    from lwdna.progress import stages

    with stages(("build", "verify")) as stage:
        stage("build")
        net = models.network(model, arguments, trust=trust, seed=seed)
        inputs = models.example(net, shapes, seed=seed)
        stage("verify")
        try:
            found = lwdna.verify(net, inputs, keep=keep, policy=policy, seed=seed)
        except lwdna.VerificationError as e:
            return Answer({"model": model, "holds": False, "broken": str(e)}, f"no: {e}", yes=False)
    return Answer({"model": model, "holds": True, "statements": found.statements}, str(found))


def _analysed(model: str, arguments: Any, shapes: Any, trust: Any, policy: str) -> tuple[Any, Any]:
    """The captured network, without values, and its channel graph."""
    import lwdna
    from lwdna.cli import models
    from lwdna.progress import stages

    with stages(("build", "capture", "analyse")) as stage:
        stage("build")
        net = models.network(model, arguments, trust=trust, values=False)
        inputs = models.example(net, shapes)
        stage("capture")
        captured = models.captured(net, inputs)
        stage("analyse")
        return captured, lwdna.analyse(captured, inputs, policy=policy)
