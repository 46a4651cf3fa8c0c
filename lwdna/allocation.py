"""Which blocks of channels a budget keeps: the global threshold, and saliency per cost."""

from __future__ import annotations

import numpy as np

from lwdna.blocks import Blocks, Floats
from lwdna.channels import Ids

#: Rounds of re-pricing per starting point, and exchanges of two blocks after them.
ROUNDS = 24
EXCHANGES = 200


def fill(blocks: Blocks, levels: Ids, order: Ids) -> tuple[Ids, int]:
    """Offer blocks in an order until none that is left out fits.

    A class whose next block does not fit is closed for good: the price of a block only rises as
    others are added.

    Args:
        blocks: the blocks.
        levels: a configuration that fits, shape (C,).
        order: all blocks in the order of the offers, shape (B,); those of one class must come in
            the order in which it climbs.

    Returns:
        (the configuration, how many blocks of the order were kept before the first that did not
        fit).
    """
    of = blocks.of[order]
    position = _position(of, len(levels))
    queue = of[position >= levels[of]]
    levels, prefix = levels.copy(), None
    while len(queue):
        run = _longest(blocks, levels, queue)
        prefix = run if prefix is None else prefix
        levels += np.bincount(queue[:run], minlength=len(levels))
        queue = queue[run:]
        queue = queue[blocks.next_fits(levels)[queue]] if len(queue) else queue
    return levels, prefix or 0


def _position(of: Ids, classes: int) -> Ids:
    """Number of earlier blocks of the same class, for each block."""
    by_class = np.argsort(of, kind="stable")
    counts = np.bincount(of, minlength=classes)
    position = np.empty(len(of), dtype=np.int64)
    position[by_class] = np.arange(len(of)) - np.repeat(np.cumsum(counts) - counts, counts)
    return position


def _longest(blocks: Blocks, levels: Ids, queue: Ids) -> int:
    """The longest prefix of the queue that still fits; cost grows with it."""

    def fits(n: int) -> bool:
        return blocks.fits(levels + np.bincount(queue[:n], minlength=len(levels)))

    low, high = 0, 1
    while high <= len(queue) and fits(high):
        low, high = high, 2 * high
    high = min(high, len(queue) + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def threshold(blocks: Blocks) -> tuple[Ids, float]:
    """The paper's allocation: all blocks at and above one saliency, then whatever still fits.

    Returns:
        (levels, saliency of the last block above the threshold; ``inf`` if there is none).

    Source: METHOD §3, with an exact search in place of the released code's fixed steps.
    """
    levels, kept = fill(blocks, np.zeros_like(blocks.height), np.arange(len(blocks.of)))
    return levels, float(blocks.mean[kept - 1]) if kept else float("inf")


def saliency_per_cost(blocks: Blocks, start: Ids) -> Ids:
    """A configuration of great total saliency, at least that of ``start``."""
    best = start
    for begin in (start, np.zeros_like(start)):
        levels = _exchange(blocks, *_reprice(blocks, begin))
        best = max(best, levels, key=blocks.saliency)
    return best


def _reprice(blocks: Blocks, levels: Ids) -> tuple[Ids, Ids]:
    weights = 1 / blocks.limits
    log_price = None
    best, best_order, best_saliency = levels, np.arange(len(blocks.of)), -np.inf
    for _ in range(ROUNDS):
        unit = weights @ blocks.pricing.prices(blocks.widths(levels), np.ones_like(levels))
        with np.errstate(divide="ignore"):
            new = np.log(unit)
        log_price = new if log_price is None else (log_price + new) / 2
        price = np.exp(log_price)[blocks.of]
        order = np.argsort(-_rate(blocks.mean, price), kind="stable")
        run = _longest(blocks, np.zeros_like(levels), blocks.of[order])
        following = np.bincount(blocks.of[order[:run]], minlength=len(levels))
        saliency = blocks.saliency(following)
        if saliency > best_saliency:
            best, best_order, best_saliency = following, order, saliency
        used = blocks.pricing.cost(blocks.widths(following)) / blocks.limits
        weights = weights * (used / used.max()) ** 4
        if len(weights) == 1 and (following == levels).all():
            break
        levels = following
    return best, best_order


def _rate(mean: Floats, price: Floats) -> Floats:
    free = price == 0
    return np.where(free, np.inf, mean / np.where(free, 1.0, price))


def _exchange(blocks: Blocks, levels: Ids, order: Ids) -> Ids:
    levels, _ = fill(blocks, levels, order)
    for _ in range(EXCHANGES):
        better = _best_exchange(blocks, levels)
        if better is None:
            break
        levels, _ = fill(blocks, better, order)
    return levels


def _best_exchange(blocks: Blocks, levels: Ids) -> Ids | None:
    widths = blocks.widths(levels)
    left = blocks.limits - blocks.pricing.cost(widths)
    price = blocks.pricing.prices(widths, blocks.step(levels, 1))
    saved = -blocks.pricing.prices(widths, blocks.step(levels, -1))
    gain = np.where(levels < blocks.height, blocks.block_saliency(levels), -np.inf)
    loss = np.where(levels > 0, blocks.block_saliency(levels - 1), np.inf)
    profit = gain[None, :] - loss[:, None]
    fits = (price[:, None, :] - saved[:, :, None] <= left[:, None, None]).all(axis=0)
    profit = np.where(fits & ~np.eye(len(levels), dtype=bool), profit, -np.inf)
    out, into = np.unravel_index(np.argmax(profit), profit.shape)
    if not profit[out, into] > 0:
        return None
    levels = levels.copy()
    levels[out] -= 1
    levels[into] += 1
    return levels
