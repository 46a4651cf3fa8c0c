"""Which blocks a budget keeps: the global threshold, balanced limits, and saliency per cost."""

from __future__ import annotations

import numpy as np

from lwdna.blocks import Blocks, Floats
from lwdna.channels import Ids

#: Rounds of tilting, at most; the share of the wanted use that is as good as all of it, the gain
#: in the use of the least used limit that is worth a tilt, the widest tilt between two classes (a
#: class may cost nothing in one of the metrics), and the difference below which they cost alike.
TILTS = 40
USED_UP = 0.99
WORTH_TILTING = 0.002
STEEPEST = 1e4
ALIKE = 1e-9
#: Rounds of pricing per starting point, at most; rounds without progress that end them, and the
#: share of the best saliency that counts as progress (each round halves what is left to gain).
ROUNDS = 24
PATIENCE = 2
PROGRESS = 1e-4
#: How fast a limit with slack loses its price: its weight is multiplied by its use to this power.
SLACK_POWER = 4
#: Exchanges of two blocks per starting point, at most, and pairs of blocks looked at for them.
EXCHANGES = 200
EXCHANGE_PAIRS = 2 * 10**6


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
    fits, prefix = blocks.next_fits(levels), None
    queue = blocks.of[order]
    if fits.any():  # most exchanges leave no room, and positions take a sort
        queue = queue[_position(queue, len(levels)) >= levels[queue]]
    while fits.any():
        run = _longest(blocks, levels, queue)
        prefix = run if prefix is None else prefix
        levels = levels + np.bincount(queue[:run], minlength=len(levels))
        fits = blocks.next_fits(levels)
        queue = queue[run:][fits[queue[run:]]]
    return levels, prefix or 0


def _position(of: Ids, classes: int) -> Ids:
    """Number of earlier blocks of the same class, for each block."""
    by_class = np.argsort(of, kind="stable")
    counts = np.bincount(of, minlength=classes)
    position = np.empty(len(of), dtype=np.int64)
    position[by_class] = np.arange(len(of)) - np.repeat(np.cumsum(counts) - counts, counts)
    return position


def _longest(blocks: Blocks, levels: Ids, queue: Ids, guess: int = 1) -> int:
    """The longest prefix of the queue that still fits; cost grows with it."""

    def fits(n: int) -> bool:
        return blocks.fits(levels + np.bincount(queue[:n], minlength=len(levels)))

    low, high = 0, max(guess, 1)
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

    Source: Li et al., "The Heterogeneity Hypothesis", CVPR 2021, whose released code has a search
    in steps (https://github.com/ofsoundof/Heterogeneity_Hypothesis, main_hh_grad.py) in place
    of this exact one.
    """
    levels, kept = fill(blocks, np.zeros_like(blocks.height), np.arange(len(blocks.of)))
    return levels, float(blocks.mean[kept - 1]) if kept else float("inf")


def balanced(blocks: Blocks) -> tuple[Ids, float | None]:
    """The threshold, tilted until each limit is used as much as uniform widths would use it.

    With several limits one threshold stops at the first that binds. Where that limit's cost is in
    other classes than the others' (MACs in early layers, params in late ones), much of another
    budget may be left that uniform widths would use. So the threshold of a class is multiplied by
    the product over metrics of (what a channel of the class costs, as a share of the limit) to the
    power of an exponent; the exponents sum to 0, grow for limits that are used more than the
    others, and are the first that were found to use up all. A limit that uniform widths leave
    loose stays loose. One limit, or classes that cost alike, leave the one threshold.

    Returns:
        (levels, saliency of the last block above the threshold; None for tilted ones).
    """
    levels, cut = threshold(blocks)
    tilts = _tilts(blocks)
    if not tilts.size or np.ptp(tilts, axis=1).max() < ALIKE:
        return levels, cut
    wanted = _use(blocks, _uniform(blocks))
    worth = blocks.mean - min(0.0, blocks.mean.min(initial=0.0))
    exponents, step, before = np.zeros(len(tilts)), 1.0, np.zeros(len(tilts))
    use = _use(blocks, levels) / wanted
    best, least, tilted = levels, use.min(), False
    for _ in range(TILTS):
        if least >= USED_UP:
            break
        pull = np.log(use) - np.log(use).mean()
        step *= 0.5 if pull @ before < 0 else 1.1  # beyond the balance, or still before it
        exponents, before = exponents + step * pull, pull
        factor = np.exp(-(exponents @ tilts))[blocks.of]
        levels, _ = fill(blocks, np.zeros_like(levels), np.argsort(-worth * factor, kind="stable"))
        use = _use(blocks, levels) / wanted
        if use.min() > least + WORTH_TILTING:
            best, least, tilted = levels, use.min(), True
    return best, None if tilted else cut


def _uniform(blocks: Blocks) -> Ids:
    """The configuration in which every class climbs the same share of its ladder."""
    height = blocks.height[blocks.of]
    return fill(
        blocks,
        np.zeros_like(blocks.height),
        np.argsort((_position(blocks.of, len(blocks.height)) + 1) / height, kind="stable"),
    )[0]


def _tilts(blocks: Blocks) -> Floats:
    """Log of a unit's price in each limit, less its mean over limits; shape (M, C)."""
    full = blocks.widths(blocks.height)
    prices = -blocks.pricing.prices(full, -np.ones_like(full)) / blocks.limits[:, None]
    dearest = prices.max(axis=0, initial=0.0)
    log = np.log(np.maximum(prices, dearest / STEEPEST) + (dearest == 0))
    tilts: Floats = log - log.mean(axis=0)
    return tilts


def _use(blocks: Blocks, levels: Ids) -> Floats:
    """Used share of each limit."""
    used: Floats = blocks.pricing.cost(blocks.widths(levels)) / blocks.limits
    return used


def saliency_per_cost(blocks: Blocks, start: Ids) -> Ids:
    """A configuration of great total saliency, at least that of ``start``.

    Searches with the prices at ``start`` and at the greatest widths, because a first-order search
    ends where it began to climb; ``start`` itself is returned if nothing better is found.
    """
    best = start
    for begin in (start, blocks.height):
        levels = _exchange(blocks, *_reprice(blocks, begin))
        best = max(best, levels, key=blocks.saliency)
    return best


def _reprice(blocks: Blocks, levels: Ids) -> tuple[Ids, Ids]:
    """Order by saliency per marginal cost, cut at the budget, price again where that led.

    A fixed point meets the first-order conditions of the Lagrangian: one multiplier per limit, 0
    where the limit has slack, and every kept block is worth more than its price.

    Returns:
        (the configuration of greatest saliency on the way, the order of blocks that led there).
    """
    weights = 1 / blocks.limits
    log_price: Floats | None = None
    best, best_order, best_saliency, idle = levels, np.arange(len(blocks.of)), -np.inf, 0
    for _ in range(ROUNDS):
        unit = weights @ blocks.pricing.prices(blocks.widths(levels), np.ones_like(levels))
        with np.errstate(divide="ignore"):  # what costs nothing has the price 0
            now = np.log(unit)
        log_price = now if log_price is None else (log_price + now) / 2  # damps oscillation
        price = np.exp(log_price)[blocks.of]
        order = np.argsort(-_rate(blocks.mean, price), kind="stable")
        queue = blocks.of[order]
        levels = np.bincount(
            queue[: _longest(blocks, 0 * levels, queue, len(queue))], minlength=len(levels)
        )
        saliency = blocks.saliency(levels)
        idle = 0 if saliency - best_saliency > PROGRESS * abs(saliency) else idle + 1
        if saliency > best_saliency:
            best, best_order, best_saliency = levels, order, saliency
        if idle == PATIENCE:
            break
        used = blocks.pricing.cost(blocks.widths(levels)) / blocks.limits
        weights = weights * (used / used.max()) ** SLACK_POWER
    return best, best_order


def _rate(mean: Floats, price: Floats) -> Floats:
    free = price == 0
    return np.where(free, np.inf, mean / np.where(free, 1.0, price))


def _exchange(blocks: Blocks, levels: Ids, order: Ids) -> Ids:
    """Fill up, then trade single blocks for more salient ones and fill up again."""
    levels, _ = fill(blocks, levels, order)
    for _ in range(min(EXCHANGES, EXCHANGE_PAIRS // max(len(levels), 1) ** 2)):
        better = _best_exchange(blocks, levels)
        if better is None:
            break
        levels, _ = fill(blocks, better, order)
    return levels


def _best_exchange(blocks: Blocks, levels: Ids) -> Ids | None:
    """The trade of one class's last block for another's next one that gains most saliency.

    Removing a block only lowers the prices of others, so a trade that fits at the present prices
    does fit; some that fit are missed.
    """
    widths = blocks.widths(levels)
    left = blocks.limits - blocks.pricing.cost(widths)
    price = blocks.pricing.prices(widths, blocks.step(levels, 1))
    saved = -blocks.pricing.prices(widths, blocks.step(levels, -1))
    gain = np.where(levels < blocks.height, blocks.block_saliency(levels), -np.inf)
    loss = np.where(levels > 0, blocks.block_saliency(levels - 1), np.inf)
    incoming = np.flatnonzero(gain > loss.min(initial=np.inf))
    outgoing = np.flatnonzero(loss < gain.max(initial=-np.inf))
    if not (len(incoming) and len(outgoing)):
        return None
    profit = gain[incoming] - loss[outgoing, None]
    for m in range(len(left)):
        profit[price[m, incoming] - saved[m, outgoing, None] > left[m]] = -np.inf
    profit[outgoing[:, None] == incoming] = -np.inf
    a, b = np.unravel_index(np.argmax(profit), profit.shape)
    if not profit[a, b] > 0:
        return None
    levels = levels.copy()
    levels[outgoing[a]] -= 1
    levels[incoming[b]] += 1
    return levels
