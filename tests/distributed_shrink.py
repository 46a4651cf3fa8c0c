"""What every process of test_distributed runs: torchrun ... distributed_shrink.py FOLDER"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

import lwdna
from lwdna.scoring import ScoringContext, as_batches
from tests.scoring.networks import Residual, analysed

#: Samples per rank, in three processes; two processes have the first two.
SIZES = (3, 5, 2)
CASES = {
    "latent-grad": lwdna.Scoring(),
    "latent-grad, trained": lwdna.Scoring(sgd=lwdna.SGD()),
    "latent-magnitude": lwdna.Scoring(sgd=lwdna.SGD()),
    "taylor": lwdna.Scoring(sgd=lwdna.SGD()),
    "snip": lwdna.Scoring(micro_batch=1),
    "grasp": lwdna.Scoring(),
    "fisher": lwdna.Scoring(),
    "synflow": lwdna.Scoring(),
    "random": lwdna.Scoring(),
}


def data(ranks: list[int]) -> list[tuple[Tensor, Tensor]]:
    """Two batches: the samples of some ranks, put together."""
    batches = []
    for number in range(2):
        g = torch.Generator().manual_seed(number)
        x = torch.randn(sum(SIZES), 3, 8, 8, generator=g, dtype=torch.float64)
        y = torch.randint(5, (sum(SIZES),), generator=g)
        parts = list(zip(x.split(SIZES), y.split(SIZES), strict=True))
        mine = [parts[r] for r in ranks]
        batches.append((torch.cat([a for a, _ in mine]), torch.cat([b for _, b in mine])))
    return batches


def network(seed: int) -> Residual:
    torch.manual_seed(seed)  # as in scripts that do not seed: every rank has its own weights
    net = Residual().double()
    net.drop.p = 0.0
    return net


def results(ranks: list[int], seed: int) -> dict[str, object]:
    """Scores of every case, and a shrunk network."""
    shrunk = lwdna.shrink(network(seed), 0.7, data=data(ranks), seed=5)
    found: dict[str, object] = {"state": shrunk.state_dict(), "dna": shrunk.meta["lwdna"].groups}
    gm, graph = analysed(network(0), dtype=torch.float64)
    for case, options in CASES.items():
        context = ScoringContext(gm, graph, as_batches(data(ranks), 2, network=gm), options=options)
        found[case] = lwdna.score(context, case.split(",")[0])
    return found


def failure(rank: int) -> str:
    """The error that a NaN in the data of the last rank gives on this one."""
    batches = data([rank])
    if rank == dist.get_world_size() - 1:
        batches[1][0][0, 0] = float("nan")
    try:
        lwdna.shrink(network(0), 0.7, data=batches)
    except lwdna.ScoringError as e:
        return str(e)
    return "no error"


def disagreement(rank: int, **options: object) -> str:
    """The error that arguments which differ between the ranks give on this one."""
    try:
        lwdna.shrink(network(0), 0.7, **{"data": data([rank]), **options})  # type: ignore[arg-type]
    except lwdna.ScoringError as e:
        return str(e)
    return "no error"


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    found = results([rank], seed=rank)
    found["failure"] = failure(rank)
    found["disagreements"] = {
        "constraints": disagreement(rank, constraints=lwdna.Constraints(divisor=1 + rank)),
        "weights": disagreement(rank, weights=("fresh", "inherit", "hyper")[rank]),
        "widen": disagreement(rank, widen=2.0 + rank),
        "number of batches": disagreement(rank, data=data([rank])[: 2 - (rank == 1)]),
    }
    found["after"] = lwdna.shrink(network(rank), 0.7, data=data([rank]), seed=5).state_dict()
    torch.save(found, Path(sys.argv[1]) / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
