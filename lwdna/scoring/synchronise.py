"""Batch norms that see the concatenated batch of all ranks, without a change to the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lwdna.errors import ScoringError, UnsupportedModelError
from lwdna.scoring.ranks import Ranks


@contextmanager
def synchronised_batch_norm(ranks: Ranks, network: nn.Module) -> Iterator[None]:
    """Inside, batch norms in training mode use the statistics of all ranks' samples.

    What is intercepted are calls of ``torch.nn.functional.batch_norm`` and ``torch.batch_norm``:
    so every batch norm module of torch and timm, replaced parameters (functional_call) and leaf
    modules of a traced graph included. Weights that are standardised by a batch norm call (timm's
    StdConv2d) take part: the same on all ranks, they come out the same.

    Not for models that pretend, by a reshape, that samples are channels of a single sample: there
    the ranks' samples would be normalised together.

    Args:
        ranks: inside their guard; a single rank leaves everything as it is.
        network: what will be run.

    Raises:
        UnsupportedModelError: the network has an ``nn.SyncBatchNorm``; names it.

    Source: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances" (1979), for the combination of means and sums of squared deviations.
    """
    if ranks.size == 1:
        yield
        return
    for name, module in network.named_modules():
        if isinstance(module, nn.SyncBatchNorm):
            # Its collectives wait for ever, and its backward has no derivative.
            raise UnsupportedModelError(
                f"module {name!r} is a SyncBatchNorm: pass the model with ordinary batch norms, "
                "which are synchronised while scoring, and convert the result "
                "(nn.SyncBatchNorm.convert_sync_batchnorm)"
            )
    with _Intercepted(ranks):
        yield


class _Intercepted(TorchFunctionMode):
    def __init__(self, ranks: Ranks) -> None:
        super().__init__()
        self.ranks = ranks

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        arguments = _ARGUMENTS.get(func)
        if arguments is not None:
            given = {**_DEFAULTS, **dict(zip(arguments, args, strict=False)), **(kwargs or {})}
            given.pop("cudnn_enabled", None)
            if given["training"]:
                return _batch_norm(self.ranks, **given)
        return func(*args, **(kwargs or {}))


_ARGUMENTS: dict[Callable[..., Any], tuple[str, ...]] = {
    F.batch_norm: (
        *("input", "running_mean", "running_var", "weight", "bias"),
        *("training", "momentum", "eps"),
    ),
    torch.batch_norm: (
        *("input", "weight", "bias", "running_mean", "running_var"),
        *("training", "momentum", "eps", "cudnn_enabled"),
    ),
}
#: Of F.batch_norm; torch.batch_norm has none.
_DEFAULTS = {"weight": None, "bias": None, "training": False, "momentum": 0.1, "eps": 1e-5}


def _batch_norm(
    ranks: Ranks,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    """F.batch_norm in training mode, on the concatenation of ``input`` (N, C, *) over the ranks."""
    dtype = torch.promote_types(input.dtype, torch.float32)
    x = input.to(dtype)
    count, mean_C, squares_C = _statistics(ranks, x)
    if count < 2:
        raise ScoringError(
            f"a batch norm of {x.shape[1]} channels got {count} value per channel on all ranks "
            "together, which has no variance: larger batches, or more than one sample"
        )
    with torch.no_grad():
        for running, value in ((running_mean, mean_C), (running_var, squares_C / (count - 1))):
            if running is not None:
                running.mul_(1 - momentum).add_(value.to(running.dtype), alpha=momentum)
    scale_C = (squares_C / count + eps).rsqrt()
    if weight is not None:
        scale_C = scale_C * weight.to(dtype)
    shift_C = -mean_C * scale_C
    if bias is not None:
        shift_C = shift_C + bias.to(dtype)
    shape = (1, -1) + (1,) * (x.dim() - 2)
    return torch.addcmul(shift_C.view(shape), x, scale_C.view(shape)).to(input.dtype)


def _statistics(ranks: Ranks, x: Tensor) -> tuple[int, Tensor, Tensor]:
    """Of ``x`` (N, C, *) over all ranks: values per channel, mean (C,), squared deviations (C,)."""
    channels = x.shape[1]
    dims = [d for d in range(x.dim()) if d != 1]
    n = x.numel() // channels
    if n:
        var_C, mean_C = torch.var_mean(x, dims, correction=0)
        squares_C = var_C * n
    else:
        # Zeros that depend on x: this rank has to take part in the backward collectives, too.
        mean_C = squares_C = x.sum(dims)
    # One sum gathers all ranks' rows, and each is differentiable: no second round trip for
    # deviations from the common mean, and no difference of large squares.
    row = torch.cat([mean_C, squares_C, mean_C.new_tensor([n])])
    rows = torch.zeros(ranks.size, len(row), dtype=row.dtype, device=row.device)
    rows = ranks.sum(rows.index_put((torch.tensor(ranks.rank, device=row.device),), row))
    means_RC, squares_RC, counts_R = rows[:, :channels], rows[:, channels:-1], rows[:, -1:].detach()
    count = counts_R.sum()
    mean_C = (counts_R * means_RC).sum(0) / count.clamp(min=1)
    squares_C = (squares_RC + counts_R * (means_RC - mean_C) ** 2).sum(0)
    return int(count.item()), mean_C, squares_C
