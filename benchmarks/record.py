"""What every record of a benchmark has: where it was made, and bars with whether they are met."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"

#: Whether each bar is met, and its text with the figures.
Bars = list[tuple[bool, str]]


def write(file: Path, record: dict[str, Any], bars: Bars) -> None:
    """Write a record with its bars."""
    record["bars"] = [{"met": met, "bar": text} for met, text in bars]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def verdict(bars: Bars) -> int:
    """Print the bars; the exit code, 1 if one is missed."""
    for met, text in bars:
        print("met   " if met else "MISSED", text)
    return 0 if all(met for met, _ in bars) else 1


#: The allocator keeps what it has, and in large pages. Otherwise the pages of large tensors are
#: taken anew in every pass, or not, as the heap happens to lie, and a network's time differs from
#: process to process. Source: PyTorch, "Performance Tuning Guide" (memory allocator), and
#: "Threading environment variables" (THP_MEM_ALLOC_ENABLE); GNU C Library manual, "Tunable
#: Parameters" of malloc.
STEADY_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_TOP_PAD_": str(2**26),
    "THP_MEM_ALLOC_ENABLE": "1",
}


def with_steady_memory() -> None:
    """Start this program again with :data:`STEADY_MEMORY`, which is read as a process begins."""
    if any(os.environ.get(key) != value for key, value in STEADY_MEMORY.items()):
        os.execve(sys.executable, sys.orig_argv, os.environ | STEADY_MEMORY)


def environment() -> dict[str, Any]:
    """Versions and machine, without names or paths of it."""
    packages = ("torch", "timm", "torchvision", "torch-pruning", "numpy")
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "versions": {
            "python": platform.python_version(),
            "lwdna": tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"],
            **{name: _version(name) for name in packages},
        },
        "device": "cpu",
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "memory": {key: os.environ[key] for key in STEADY_MEMORY if key in os.environ},
        "load_average_before": round(os.getloadavg()[0], 2),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def _commit() -> str | None:
    """Commit of the working tree; ``+`` stands for changes in lwdna/."""

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", *args], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "lwdna") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
