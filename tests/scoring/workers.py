"""What the processes of test_ranks.py run; the test process runs the same functions alone."""

from __future__ import annotations

import os
import pickle
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.func import functional_call

from lwdna.scoring.ranks import Ranks
from lwdna.scoring.synchronise import synchronised_batch_norm

#: Samples of each rank, by number of ranks.
PARTS = {1: (7,), 2: (5, 2), 3: (4, 1, 2)}
TIMEOUT = timedelta(seconds=60)


class Net(nn.Module):
    """Convolutions, batch norms of three makes, a residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.bn2 = BatchNormAct2d(6)
        self.fc = nn.Linear(6, 8)
        self.bn3 = nn.BatchNorm1d(8, momentum=None)
        self.out = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = x + self.bn2(self.conv2(x))
        return self.out(self.bn3(self.fc(x.mean((2, 3)))))


def net() -> Net:
    torch.manual_seed(0)
    model = Net().double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, dtype=p.dtype))
    return model


def data(ranks: Ranks) -> tuple[Tensor, Tensor]:
    """This rank's part of 7 samples."""
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(7, 3, 5, 5, generator=g).double(), torch.randint(4, (7,), generator=g)
    parts = PARTS[ranks.size]
    start = sum(parts[: ranks.rank])
    part = slice(start, start + parts[ranks.rank])
    return x[part], y[part]


def derivatives(ranks: Ranks) -> dict[str, list[Tensor]]:
    """Gradient, Hessian-vector product and buffers after one batch."""
    model = net()
    params = dict(model.named_parameters())
    directions = [
        torch.sin(torch.arange(p.numel()) + 1.0).view_as(p).double() for p in params.values()
    ]
    x, y = data(ranks)
    with ranks.guard(), synchronised_batch_norm(ranks, model):
        logits = functional_call(model, params, (x,))
        loss = F.cross_entropy(logits, y) * ranks.share(len(y))
        grads = torch.autograd.grad(loss, list(params.values()), create_graph=True)
        slope = sum((g * v).sum() for g, v in zip(grads, directions, strict=True))
        curvature = torch.autograd.grad(slope, list(params.values()), materialize_grads=True)
        sums = [g.detach().clone() for g in grads], list(curvature)
        for tensors in sums:
            ranks.sum_(tensors)
    return {"gradient": sums[0], "curvature": sums[1], "buffers": list(model.buffers())}


#: name -> (input of all ranks, first sample of each rank for 2 ranks, batch norm)
def batch_norms() -> dict[str, tuple[Tensor, int, nn.Module]]:
    g = torch.Generator().manual_seed(3)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g)

    return {
        "plain": (randn(5, 3, 4, 4), 2, nn.BatchNorm2d(3)),
        "1d": (randn(5, 3), 4, nn.BatchNorm1d(3)),
        "3d": (randn(3, 2, 2, 3, 2), 1, nn.BatchNorm3d(2)),
        "a rank without samples": (randn(3, 2, 3, 3), 3, nn.BatchNorm2d(2)),
        "one value per rank": (randn(2, 4), 1, nn.BatchNorm1d(4)),
        "no affine": (randn(4, 3, 2, 2), 3, nn.BatchNorm2d(3, affine=False)),
        "cumulative": (randn(4, 3, 2, 2), 1, nn.BatchNorm2d(3, momentum=None)),
        "no running statistics": (
            randn(4, 3, 2, 2),
            1,
            nn.BatchNorm2d(3, track_running_stats=False).eval(),
        ),
        "frozen": (randn(4, 3, 2, 2), 1, nn.BatchNorm2d(3).eval()),
        "means apart": (
            randn(4, 3, 8, 8) + torch.tensor([1e3, 0, -1e3, 5]).view(4, 1, 1, 1),
            1,
            nn.BatchNorm2d(3),
        ),
        "large mean": (randn(4, 3, 8, 8) + 1e3, 1, nn.BatchNorm2d(3)),
        "bfloat16": (randn(4, 3, 8, 8).bfloat16(), 1, nn.BatchNorm2d(3)),
        "timm": (randn(4, 3, 4, 4), 1, BatchNormAct2d(3)),
        "torch.batch_norm": (randn(4, 3, 4, 4), 1, Direct(3)),
    }


class Direct(nn.BatchNorm2d):
    """Calls the binding, not the function around it."""

    def forward(self, input: Tensor) -> Tensor:
        tensors = input, self.weight, self.bias, self.running_mean, self.running_var
        return torch.batch_norm(
            *tensors, training=True, momentum=0.3, eps=self.eps, cudnn_enabled=False
        )


def normalised(ranks: Ranks) -> dict[str, list[Tensor]]:
    """Output, input gradient and buffers of each batch norm, of this rank's samples."""
    results = {}
    with ranks.guard():
        for name, (x, split, module) in batch_norms().items():
            part = (
                slice(None) if ranks.size == 1 else (slice(split), slice(split, None))[ranks.rank]
            )
            leaf = x[part].clone().requires_grad_()
            with synchronised_batch_norm(ranks, module):
                y = module(leaf)
            weights = torch.cos(torch.arange(x.numel()) * 1.0).view_as(x)[part]
            (y * weights).sum().backward()
            results[name] = [y.detach(), leaf.grad, *(b.clone() for b in module.buffers())]
    return results


def autocast(ranks: Ranks) -> tuple[torch.dtype, Tensor]:
    """Logits of the network under autocast."""
    model, (x, _) = net().float(), data(ranks)
    with (
        ranks.guard(),
        synchronised_batch_norm(ranks, model),
        torch.autocast("cpu", torch.bfloat16),
    ):
        logits = model(x.float())
    return logits.dtype, logits.detach().float()


def collectives(ranks: Ranks) -> dict[str, Any]:
    """What the primitives return on this rank."""
    r = ranks.rank
    with ranks.guard():
        x = torch.full((2, 3), r + 1.0).t()
        total = ranks.sum(x)
        many = [torch.full((k % 5, 2), float(r + k)) for k in range(300)]
        many += [torch.full((3,), r, dtype=torch.int64), torch.full((2, 2), r + 1.0).t()[:1]]
        ranks.sum_(many)
        sent = [torch.full((2, 2), r + 5.0), torch.tensor(r), torch.tensor([True, False]) ^ (r > 0)]
        ranks.broadcast_(sent)
        ranks.agree({"seed": 0, "shapes": {"w": (3, 2)}})
        nested = Ranks.current() is ranks
        with Ranks.current().guard():
            share = ranks.share(2 + r)
    return {"x": x, "sum": total, "sum_": many, "sent": sent, "share": share, "nested": nested}


def bucketed(ranks: Ranks) -> list[int]:
    """Sizes of the all-reduces that sum_ makes of 300 small and two large tensors."""
    sizes = []
    with ranks.guard():
        session = ranks._open()
        reduce = session.all_reduce
        session.all_reduce = lambda t: (sizes.append(t.nbytes), reduce(t))[1]  # type: ignore
        big = [torch.zeros(5 * 2**20) for _ in range(2)]
        ranks.sum_([*(torch.zeros(2) for _ in range(300)), *big])
    return sizes


def small_sums(ranks: Ranks) -> float:
    """Seconds for one small sum, in a row of 200."""
    with ranks.guard():
        x = torch.zeros(64)
        start = time.perf_counter()
        for _ in range(200):
            ranks.sum(x)
        return (time.perf_counter() - start) / 200


# Failures: rank 1 fails, the others must not wait. ------------------------------------------------


class FailingBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        raise ArithmeticError("in backward")


def training_step(ranks: Ranks, when: str) -> None:
    """One forward and backward in which rank 1 fails at the named moment."""
    model, (x, y) = net(), data(ranks)
    me = ranks.rank == 1

    def fail(at: str, error: BaseException) -> None:
        if me and when == at:
            raise error

    def failing_forward(module: nn.Module, args: Any) -> None:
        fail("forward", ValueError("in forward"))

    model.bn2.register_forward_pre_hook(failing_forward)
    with ranks.guard(), synchronised_batch_norm(ranks, model):
        fail("before", ValueError("before anything"))
        fail("interrupt", KeyboardInterrupt())
        logits = model(x)
        fail("between", FloatingPointError("the loss of batch 0 is NaN"))
        if me and when == "backward":
            logits = FailingBackward.apply(logits)
        (F.cross_entropy(logits, y) * ranks.share(len(y))).backward()
        ranks.sum_([p.grad for p in model.parameters() if p.grad is not None])
        fail("after", ValueError("after the last collective"))
        if me and when == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if ranks.rank == 0 and when == "store dies":
            os._exit(3)
    if me and when == "outside":
        raise LookupError("after the guard")


def failing(when: str) -> Callable[[Ranks], None]:
    return lambda ranks: training_step(ranks, when)


def slow(ranks: Ranks) -> float:
    """Rank 1 lets the others wait long enough to look for failures, old ones included."""
    with ranks.guard():
        if ranks.rank == 1:
            time.sleep(0.6)
        return float(ranks.sum(torch.ones(1)))


def disagree(ranks: Ranks, **what: Any) -> None:
    with ranks.guard():
        ranks.agree(what)


def different_collectives(ranks: Ranks) -> None:
    impatient = Ranks(ranks.size, ranks.rank, timedelta(seconds=1))
    with impatient.guard():
        impatient.sum(torch.ones(4 if ranks.rank else 3))


def silent(ranks: Ranks) -> None:
    """Rank 1 is busy for longer than the timeout."""
    impatient = Ranks(ranks.size, ranks.rank, timedelta(seconds=1))
    with impatient.guard():
        if ranks.rank == 1:
            time.sleep(4)
        impatient.sum(torch.ones(2))


def late(ranks: Ranks) -> None:
    """Rank 1 does not enter the guard; the next guard works nevertheless."""
    if ranks.rank == 1:
        time.sleep(12)
        return
    with Ranks(ranks.size, ranks.rank, timedelta(seconds=10)).guard():  # ample for the others
        pass


def swallowed(ranks: Ranks) -> None:
    """The others catch the error inside the guard, and go on."""
    with ranks.guard():
        try:
            if ranks.rank == 1:
                raise ValueError("once")
            ranks.sum(torch.ones(1))
        except Exception as error:
            if ranks.rank == 1:
                raise
            assert "once" in str(error)
        ranks.sum(torch.ones(1))


def sync_batch_norm(ranks: Ranks) -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.SyncBatchNorm(3))
    with ranks.guard(), synchronised_batch_norm(ranks, model):
        pass


def single_value(ranks: Ranks) -> None:
    model = nn.BatchNorm1d(4)
    with ranks.guard(), synchronised_batch_norm(ranks, model):
        model(torch.ones(1 if ranks.rank == 0 else 0, 4))


def empty(ranks: Ranks) -> None:
    with ranks.guard():
        ranks.share(0)


def unguarded(ranks: Ranks) -> None:
    ranks.sum(torch.ones(1))


SCENARIOS: dict[str, Callable[[Ranks], Any]] = {
    "derivatives": derivatives,
    "normalised": normalised,
    "autocast": autocast,
    "collectives": collectives,
    "bucketed": bucketed,
    "small sums": small_sums,
    **{when: failing(when) for when in ("before", "forward", "between", "backward", "after")},
    "interrupt": failing("interrupt"),
    "outside": failing("outside"),
    "budget": lambda ranks: disagree(ranks, seed=0, budget=0.9 if ranks.rank < 1 else 0.8),
    "shapes": lambda ranks: disagree(ranks, shapes={"conv": (1, 2), "fc": (ranks.rank // 2, 3)}),
    "missing": lambda ranks: disagree(ranks, **({"seed": 0} if ranks.rank else {})),
    "different": different_collectives,
    "silent": silent,
    "slow": slow,
    "late": late,
    "swallowed": swallowed,
    "sync batch norm": sync_batch_norm,
    "single value": single_value,
    "no samples": empty,
    "unguarded": unguarded,
    "derivatives again": derivatives,
    "die": failing("die"),
    "store dies": failing("store dies"),
}


def work(rank: int, size: int, init_method: str, folder: Path, scenarios: tuple[str, ...]) -> None:
    """One process: the scenarios in turn, each outcome in a file of ``folder``."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method, TIMEOUT, size, rank)
    kept = []  # as a debugger or sys.last_exc would: the connections of a failed guard stay open
    for name in scenarios:
        start = time.monotonic()
        try:
            outcome: tuple[str, Any] = ("returned", SCENARIOS[name](Ranks.current()))
        except BaseException as error:
            outcome = (type(error).__name__, str(error))
            kept.append(error)
        seconds = time.monotonic() - start
        (folder / f"{name}.{rank}").write_bytes(pickle.dumps((*outcome, seconds)))
