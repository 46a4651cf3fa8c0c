"""The sweep's own machinery: samples, limits of processes, resumption, summaries, tables."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks.pages import filled
from benchmarks.zoo import __main__ as sweep
from benchmarks.zoo import names, pool, records, report, summary
from benchmarks.zoo.records import Results
from benchmarks.zoo.worker import Settings, examine

Send = Callable[[Mapping[str, Any]], None]


def record(name: str = "timm:resnet18", **changes: Any) -> dict[str, Any]:
    """A model that came through."""
    return {
        "name": name,
        "family": "timm/resnet",
        "run": "a",
        "ok": True,
        "device": "cpu",
        "kind": "cnn",
        "nodes": 100,
        "share": {"macs": 1.0, "params": 1.0},
        "frozen": [],
        "seconds": {"capture": 0.5, "analyse": 0.25, "resize": 0.25},
        "peak_mb": {"capture": 10.0, "analyse": 30.0, "resize": 20.0},
        "held": {"masked equivalence": "1 output"},
        "broken": {},
        **changes,
    }


def test_a_sample_has_different_architectures() -> None:
    everything = names.all_models()
    drawn = names.sample(everything, 40, seed=0)
    assert len({names.family(name) for name in drawn}) == len(drawn) == 40
    assert drawn == names.sample(everything, 40, seed=0) != names.sample(everything, 40, seed=1)
    two = names.sample(names.matching(["resnet18", "resnet34", "alexnet"]), 4, seed=0)
    assert len({names.family(name) for name in two[:3]}) == 3, "a second member comes last"


def test_a_pattern_without_models_is_refused() -> None:
    assert names.matching(["timm:resnet18", "resnet18"])[0] == "timm:resnet18"
    with pytest.raises(ValueError, match="'resnet18000' matches no model"):
        names.matching(["resnet18000"])


def _fate(name: str, send: Send) -> None:
    send({"name": name, "stage": "peer" if name == "peer dies" else "capture", "nodes": 7})
    if name == "sleeps":
        time.sleep(60)
    if name.endswith("dies"):
        os.kill(os.getpid(), 9)
    if name == "eats memory":
        try:
            bytearray(2**30)
        except MemoryError:
            send({"name": name, "stage": "done", "failure": {"stage": "capture", "error": "ate"}})
            return
    send({"name": name, "stage": "done"})


def test_a_process_that_sleeps_eats_memory_or_dies_leaves_a_record() -> None:
    fates = ("sleeps", "dies", "peer dies", "eats memory", "lives")
    started = time.monotonic()
    ended = pool.run_all(fates, _fate, jobs=2, limit_s=2.0, memory_gb=0.5)
    found = {r["name"]: r for r in ended}
    assert time.monotonic() - started < 20
    assert set(found) == set(fates)
    assert found["sleeps"]["failure"]["error"] == "capture: stopped after 2 s"
    assert found["dies"]["failure"]["error"] == "capture: the process died: signal SIGKILL"
    assert found["dies"]["nodes"] == 7, "what it had sent is kept"
    assert found["peer dies"]["peer"]["failure"] == "the process died: signal SIGKILL"
    assert "failure" not in found["peer dies"], "the peer's fault is not ours"
    assert "failure" not in found["lives"]
    if os.uname().sysname == "Linux":
        assert found["eats memory"]["failure"]["error"] == "ate"


def test_one_model_through_every_stage() -> None:
    sent: list[dict[str, Any]] = []
    settings = Settings(peer=False)
    examine("timm:test_efficientnet", settings, lambda r: sent.append({**r}))
    last = sent[-1]
    assert last["stage"] == "done" and "failure" not in last
    assert records.is_ok(last)
    assert set(last["held"]) == {
        "identity", "round trip", "masked equivalence", "restriction", "cost", "trains"
    }  # fmt: skip
    assert 0.69 < last["left"] <= settings.budget
    stages = [r["stage"] for r in sent]
    assert stages == [
        "warm up",
        "build",
        "capture",
        "analyse",
        "shrink",
        "resize",
        "verify",
        "done",
    ]
    assert set(last["seconds"]) == set(last["peak_mb"]) == set(stages[1:-1])


def test_giants_are_checked_on_the_meta_device() -> None:
    sent: list[dict[str, Any]] = []
    settings = Settings(peer=False, numeric_params=1000)
    examine("timm:test_efficientnet", settings, lambda r: sent.append({**r}))
    last = sent[-1]
    assert last["device"] == "meta" and last["meta_because"] == "more than 0.001 M parameters"
    assert records.is_ok(last) and set(last["held"]) == {"shapes", "restriction", "cost"}


def test_a_training_step_that_is_too_large_is_made_with_smaller_inputs() -> None:
    sent: list[dict[str, Any]] = []
    settings = Settings(peer=False, numeric_gb=0.006)  # between those of 80 and 160 pixels
    examine("timm:test_vit", settings, lambda r: sent.append({**r}))
    last = sent[-1]
    assert records.is_ok(last) and "masked equivalence" in last["held"]
    assert last["input"] == [[3, 160, 160]] and last["verified_at"] == [(2, 3, 80, 80)]
    assert last["reduced_because"].startswith("a training step takes about 0.0")


def test_a_failure_names_its_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("/somewhere/lib/site-packages/timm/layers/x.py:3 is odd\nmore")

    monkeypatch.setattr("lwdna.analyse", broken)
    sent: list[dict[str, Any]] = []
    examine("timm:test_efficientnet", Settings(peer=False), lambda r: sent.append({**r}))
    failure = sent[-1]["failure"]
    assert failure["stage"] == "analyse" and "capture" in sent[-1]["seconds"]
    assert failure["error"] == "analyse: RuntimeError: timm/layers/x.py:3 is odd"
    assert f"{Path(__file__).name}:" in failure["at"]
    assert not records.is_ok(sent[-1])


def _quick(name: str, settings: Settings, send: Send) -> None:
    made = record(name, stage="done", macs=1)
    for key in ("family", "run", "ok"):
        del made[key]
    if name == "timm:resnet34":
        made["broken"] = {"cost": "cost: 2 became 3"}
    send(made)


def test_a_sweep_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sweep, "examine", _quick)
    file = tmp_path / "zoo.jsonl"
    arguments = ["--models", "timm:resnet18", "timm:resnet34", "--output", str(file), "--no-peer"]
    assert sweep.main(arguments) == 1, "a broken oracle is a failure"
    first = file.read_text()
    assert "cost: 2 became 3" in first
    assert [line[:8] for line in first.splitlines()] == ['{"run": ', '{"family', '{"family']

    assert sweep.main(arguments) == 1
    assert file.read_text() == first, "nothing is examined twice"

    examined: list[str] = []
    whole = pool.run_all

    def watch(todo: list[str], *args: Any, **kwargs: Any) -> Any:
        examined.extend(todo)
        return whole(todo, *args, **kwargs)

    monkeypatch.setattr(pool, "run_all", watch)
    assert sweep.main([*arguments, "--redo", "failed"]) == 1
    assert examined == ["timm:resnet34"]
    sweep.main([*arguments, "--seed", "1"])
    assert sorted(examined[1:]) == ["timm:resnet18", "timm:resnet34"], "other settings"
    capsys.readouterr()


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "zoo.jsonl"
    records.append(file, {"run": "a", "key": "k"})
    records.append(file, record(ok=False))
    records.append(file, record("timm:alexnet"))
    assert records.read(file).done("k", redo_failed=False) == {"timm:resnet18", "timm:alexnet"}
    assert records.read(file).done("k", redo_failed=True) == {"timm:alexnet"}
    assert records.read(file).done("other", redo_failed=False) == set()
    records.append(file, record())
    assert list(records.tidy(file).models) == ["timm:alexnet", "timm:resnet18"]
    assert len(file.read_text().splitlines()) == 3, "the last line of a model counts"
    file.write_text(file.read_text() + '{"name": "timm:res')
    with pytest.raises(ValueError, match="line 4"):
        records.read(file)


def test_the_exponent_of_a_linear_pass_is_one() -> None:
    def timed(nodes: int, power: float) -> dict[str, Any]:
        third = nodes**power / 3000
        seconds = dict.fromkeys(summary.STAGES, third)
        return record(f"timm:{nodes}", nodes=nodes, seconds=seconds)

    for power in (1.0, 1.5):
        found = summary.exponent(timed(n, power) for n in (50, 200, 1000, 4000))
        assert found == pytest.approx(power)
    assert summary.exponent([record()]) is None


def test_no_loss_is_silent() -> None:
    limits = summary.Limits(
        refused=({"models": ["timm:odd*"], "rule": "r", "source": "s"},),
        share=({"models": ["timm:half*"], "macs": 0.5, "rule": "r", "source": "s"},),
    )
    low = {"share": {"macs": 0.55, "params": 1.0}, "frozen": [{"reason": "a table"}]}
    failed = {"ok": False, "failure": {"stage": "capture", "error": "capture: no"}}
    cases = [
        record("timm:fine"),
        record("timm:half_1", **low),
        record("timm:half_2", **{**low, "share": {"macs": 0.4, "params": 1.0}}),
        record("timm:low", **low),
        record("timm:low_vit", **{**low, "kind": "transformer"}),
        record("timm:odd_1", **failed),
        record("timm:bad", **failed),
    ]
    wrong = dict(summary.unexplained(cases, limits))
    assert set(wrong) == {"timm:half_2", "timm:low", "timm:low_vit", "timm:bad"}
    assert wrong["timm:low"] == "55.0% of MACs prunable: a table"
    assert wrong["timm:bad"] == "capture: no"
    assert summary.stale(cases, limits) == []
    assert summary.stale(cases[:1] + cases[3:], limits) == [], "names no model that was examined"
    mended = [record("timm:odd_1"), record("timm:half_1")]
    assert summary.stale(mended, limits) == [*limits.refused, *limits.share]


def test_the_committed_limits_name_models() -> None:
    limits = summary.Limits.read()
    for entry in (*limits.refused, *limits.share):
        assert names.matching(entry["models"]), entry


def test_the_peer_counts_where_its_result_runs() -> None:
    def beside(name: str, once: float, **peer: Any) -> dict[str, Any]:
        return record(name, peer={"ours_s": 1.0, "ours_shrink_s": 2.0, "peer_s": once, **peer})

    found = [
        beside("timm:a", 3.0, peer_shrink_s=8.0, failure=None),
        beside("timm:b", 0.5, peer_shrink_s=1.0, failure=None),
        beside("timm:c", 9.0, failure="forward of the result: RuntimeError"),
        record("timm:d", peer={"ours_s": 1.0, "failure": "pruning: TimeLimitError"}),
        record("timm:e"),
    ]
    assert summary.peer_ratios(found, "removal") == {"timm:a": 3.0, "timm:b": 0.5}
    assert summary.peer_ratios(found, "shrink") == {"timm:a": 4.0, "timm:b": 0.5}
    texts = [bar.text for bar in summary.bars(found, 5, summary.Limits((), ()))]
    assert any("50.0% of the 2 models (of 4 tried)" in text for text in texts)
    assert any("median: 2.25" in text and text.endswith("1.75") for text in texts)


def test_tables_are_filled_between_their_marks() -> None:
    run = {"date": "d", "commit": "c", "cpu": "x", "models": 1, "versions": {"torch": "2"}}
    results = Results({"a": run}, {"timm:resnet18": record()})
    blocks = report.tables(results)
    page = "# Zoo\n<!-- zoo:short -->\nold\n<!-- /zoo:short -->\nend\n"
    once = filled(page, "zoo", blocks)
    assert "| timm | 1 | 1 | 1 | 1 | 1 | 1 | 1.00 | 100 | ≥ 100.0 % |" in once
    assert filled(once, "zoo", blocks) == once and once.endswith("end\n")
    with pytest.raises(ValueError, match="zoo:other"):
        filled("<!-- zoo:other -->\n<!-- /zoo:other -->", "zoo", blocks)


@pytest.mark.parametrize("page", report.PAGES, ids=lambda page: page.name)
def test_the_pages_tables_are_those_of_the_record(page: Path) -> None:
    blocks = report.tables(records.read(report.RESULTS))
    text = page.read_text()
    assert "<!-- zoo:" in text
    assert filled(text, "zoo", blocks) == text, "run python -m benchmarks.zoo.report"
