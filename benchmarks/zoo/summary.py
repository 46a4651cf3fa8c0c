"""Figures over many models: shares of success, percentiles, the exponent, the peer, the limits."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

Record = Mapping[str, Any]

LIMITS = Path(__file__).with_name("limits.toml")
#: Least share of MACs in prunable groups, by kind of network.
LEAST_SHARE = {"cnn": 0.9, "transformer": 0.6}
STAGES = ("capture", "analyse", "resize")

MEDIAN_S, P95_S, MOST_S = 3.0, 15.0, 120.0
EXPONENT = 1.15
PEAK_MB = 2048.0
FASTER_SHARE, PEER_RATIO = 0.95, 3.0


@dataclass(frozen=True)
class Limits:
    """The committed exceptions: see limits.toml."""

    refused: tuple[Mapping[str, Any], ...]
    share: tuple[Mapping[str, Any], ...]

    @classmethod
    def read(cls, path: Path = LIMITS) -> Limits:
        """The table in a file.

        Raises:
            ValueError: an entry lacks a key or has an unknown one.
        """
        tables = tomllib.loads(path.read_text())
        wanted = {
            "refused": {"models", "rule", "source"},
            "share": {"models", "macs", "rule", "source"},
        }
        for kind, entries in tables.items():
            for entry in entries:
                if kind not in wanted or set(entry) != wanted[kind]:
                    raise ValueError(f"{path.name}: [[{kind}]] {entry}: needs {wanted.get(kind)}")
        return cls(tuple(tables.get("refused", ())), tuple(tables.get("share", ())))

    def refuses(self, record: Record) -> Mapping[str, Any] | None:
        """The entry that explains why the model cannot be done at all."""
        return next((e for e in self.refused if _named(record, e)), None)

    def explains(self, record: Record) -> Mapping[str, Any] | None:
        """The entry that explains the model's share of MACs."""
        share = record["share"]["macs"]
        return next((e for e in self.share if _named(record, e) and share >= e["macs"]), None)


def _named(record: Record, entry: Mapping[str, Any]) -> bool:
    return any(fnmatchcase(record["name"], pattern) for pattern in entry["models"])


@dataclass(frozen=True)
class Bar:
    """One bar: whether it is met, and the figures."""

    met: bool
    text: str


def total_s(record: Record) -> float | None:
    """Seconds of capture, analyse and resize; None if one of them was not reached."""
    seconds = record["seconds"]
    return sum(seconds[s] for s in STAGES) if all(s in seconds for s in STAGES) else None


def peak_mb(record: Record) -> float | None:
    """The largest rise of resident memory in capture, analyse and resize, MiB.

    On the CPU it contains the values of the new network: an upper bound of that on meta tensors.
    """
    peaks = [record["peak_mb"][s] for s in STAGES if s in record["peak_mb"]]
    return max(peaks, default=None)


def exponent(records: Iterable[Record]) -> float | None:
    """B of the least-squares fit seconds = a * nodes**b in logarithms; None below 3 sizes."""
    points = {(r["nodes"], s) for r in records if (s := total_s(r)) and "nodes" in r}
    if len({nodes for nodes, _ in points}) < 3:
        return None
    nodes, seconds = np.log(np.array(sorted(points), dtype=float)).T
    return float(np.polyfit(nodes, seconds, 1)[0])


def peer_ratios(records: Iterable[Record], job: str) -> dict[str, float]:
    """Peer's seconds / ours for the models on which the peer's result runs, too.

    Args:
        records: of the models.
        job: ``"removal"`` of a share of every group, once, or ``"shrink"`` to the budget, where the
            peer is stopped at a multiple of our seconds: the ratio is a lower bound then.
    """
    kind = {"removal": "", "shrink": "shrink_"}[job]
    ours, theirs = f"ours_{kind}s", f"peer_{kind}s"
    return {
        r["name"]: r["peer"][theirs] / r["peer"][ours]
        for r in records
        if r["ok"] and "peer" in r and theirs in r["peer"] and not r["peer"]["failure"]
    }


def low_share(records: Iterable[Record]) -> list[Record]:
    """Models with less of their MACs in prunable groups than their kind should have."""
    return [r for r in records if "share" in r and r["share"]["macs"] < LEAST_SHARE[r["kind"]]]


def unexplained(records: Iterable[Record], limits: Limits) -> list[tuple[str, str]]:
    """(model, what is wrong) for all that limits.toml does not list."""
    records = list(records)
    wrong = [(r["name"], why(r)) for r in records if not r["ok"] and limits.refuses(r) is None]
    for r in low_share(records):
        if limits.explains(r) is None:
            reason = next((f["reason"] for f in r["frozen"]), "no reason recorded")
            wrong.append((r["name"], f"{r['share']['macs']:.1%} of MACs prunable: {reason}"))
    return wrong


def stale(records: Iterable[Record], limits: Limits) -> list[Mapping[str, Any]]:
    """Entries of limits.toml that name models of ``records`` and that none of them needs."""
    records = list(records)
    needed = [limits.refuses(r) for r in records if not r["ok"]]
    needed += [limits.explains(r) for r in low_share(records)]
    entries = [e for e in (*limits.refused, *limits.share) if any(_named(r, e) for r in records)]
    return [e for e in entries if not any(e is n for n in needed)]


def why(record: Record) -> str:
    """What failed, in one line."""
    if "failure" in record:
        return str(record["failure"]["error"])
    return "; ".join(record.get("broken", {}).values()) or "not verified"


def bars(records: Sequence[Record], expected: int, limits: Limits) -> list[Bar]:
    """The bars of the sweep with what was reached.

    Args:
        records: of the models.
        expected: how many models there should be.
        limits: the committed exceptions.
    """
    ok = sum(r["ok"] for r in records)
    listed = sum(limits.refuses(r) is not None for r in records if not r["ok"])
    numeric = [r for r in records if r["ok"] and "masked equivalence" in r["held"]]
    small = [r for r in records if r.get("device") == "cpu" and (r["ok"] or not limits.refuses(r))]
    wrong, old = unexplained(records, limits), stale(records, limits)
    found = [
        Bar(
            ok + listed == expected,
            f"{ok} of {expected} models captured, analysed, shrunk and verified, {listed} more "
            "listed as impossible",
        ),
        Bar(
            len(numeric) == len(small),
            f"{len(numeric)} of {len(small)} models under 100 M parameters verified in float64",
        ),
        Bar(not wrong, f"{len(wrong)} failures or losses of prunability are not listed"),
        Bar(not old, f"{len(old)} entries of limits.toml are out of date"),
    ]
    return found + _speed(records) + _beside_peer(records)


def _speed(records: Sequence[Record]) -> list[Bar]:
    seconds = [s for r in records if (s := total_s(r)) is not None]
    peaks = {r["name"]: p for r in records if (p := peak_mb(r)) is not None}
    if not seconds:
        return []
    middle, high, most = np.percentile(seconds, [50, 95, 100])
    found = [
        Bar(bool(middle <= MEDIAN_S), f"median of capture + analyse + resize: {middle:.2f} s"),
        Bar(bool(high <= P95_S), f"95th percentile: {high:.2f} s"),
        Bar(bool(most <= MOST_S), f"slowest: {most:.2f} s"),
    ]
    slope = exponent(records)
    if slope is not None:
        found.append(Bar(slope <= EXPONENT, f"seconds grow with nodes to the power {slope:.2f}"))
    name = max(peaks, key=lambda n: peaks[n])
    found.append(Bar(peaks[name] <= PEAK_MB, f"peak memory: {peaks[name]:.0f} MiB ({name})"))
    return found


def _beside_peer(records: Sequence[Record]) -> list[Bar]:
    shrunk, removed = (list(peer_ratios(records, j).values()) for j in ("shrink", "removal"))
    tried = sum("peer" in r for r in records)
    if not shrunk or not removed:
        return []
    (faster, middle), (faster_once, middle_once) = (
        (sum(r > 1 for r in ratios) / len(ratios), median(ratios)) for ratios in (shrunk, removed)
    )
    return [
        Bar(
            faster >= FASTER_SHARE,
            f"faster than Torch-Pruning to the budget on {faster:.1%} of the {len(shrunk)} models "
            f"(of {tried} tried) that it prunes, too; to remove channels once, without a budget, "
            f"on {faster_once:.1%}",
        ),
        Bar(
            middle >= PEER_RATIO,
            f"Torch-Pruning's seconds / ours to the budget, median: {middle:.2f}; to remove "
            f"channels once, without a budget: {middle_once:.2f}",
        ),
    ]


def grouped(records: Iterable[Record], key: Callable[[Record], str]) -> dict[str, list[Record]]:
    """Records by key, keys sorted."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(key(record), []).append(record)
    return dict(sorted(found.items()))
