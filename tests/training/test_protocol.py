"""Protocols: presets as published, strict reading, schedules as PyTorch computes them."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import lwdna
from lwdna.recipes import protocols
from lwdna.training import PRESETS, Protocol, read_protocol
from lwdna.training.run import optimizer_of
from tests.training.runs import protocol

PUBLISHED = {
    "imagenet-resnet50": protocols.IMAGENET,
    "tiny-imagenet-mobilenet": protocols.TINY_IMAGENET,
    "cifar-resnet56": protocols.CIFAR,
    "sr-x4-edsr": protocols.EDSR,
    "sr-x4-srresnet": protocols.SRRESNET,
    "denoising-dncnn": protocols.DNCNN,
    "denoising-unet": protocols.UNET,
}


def test_every_preset_is_compared_with_what_was_published() -> None:
    assert PUBLISHED.keys() == PRESETS.keys()


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_the_published_protocols(name: str) -> None:
    preset, published = PRESETS[name], PUBLISHED[name]
    for key in ("lr", "epochs", "schedule", "batch", "milestones", "gamma", "weight_decay"):
        assert getattr(preset, key) == getattr(published, key), key
    assert preset.distillation == published.distillation
    assert published.source in preset.source
    assert preset.decay_all and preset.smoothing == 0 and preset.ema is None  # PyTorch's defaults
    if preset.patches is not None:
        shown = f"{preset.patches.size}x{preset.patches.size}"
        assert shown in published.augmentation
        assert preset.loss == "l1"


@pytest.mark.parametrize("name", PRESETS)
def test_a_protocol_reads_back_from_json_and_toml(name: str) -> None:
    preset = PRESETS[name]
    assert Protocol.from_json(preset.to_json()) == preset
    assert Protocol.from_toml(preset.to_toml()) == preset


def test_files(tmp_path) -> None:
    for suffix, text in (("json", protocol().to_json()), ("toml", protocol().to_toml())):
        (tmp_path / f"p.{suffix}").write_text(text)
        assert read_protocol(tmp_path / f"p.{suffix}") == protocol()
    for name, said in (("p.yaml", r"a protocol is a \.json"), ("no.json", "cannot be read")):
        with pytest.raises(lwdna.TrainingError, match=said):
            read_protocol(tmp_path / name)


def test_what_has_a_default_may_be_missing() -> None:
    values = {"name": "p", "source": "s", "task": "classification", "epochs": 1, "batch": 2}
    found = Protocol.from_dict({**values, "lr": 1, "images": {"size": 8}})
    assert found.lr == 1.0 and found.images is not None and found.images.crop == "resized"
    with pytest.raises(lwdna.TrainingError, match="lacks field 'lr'"):
        Protocol.from_dict({**values, "images": {"size": 8}})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("epochs=0", "epochs=0: must be positive"),
        ("epochs=1.5", "epochs is 1.5"),
        ("epoch=1", "changes no setting"),
        ("epochs", "changes no setting"),
        ("images.sise=4", "changes no setting"),
        ("task=detection", "task is 'detection'"),
        ("task=denoising", "must be null for denoising"),
        ("patches.size=3", "has no patches"),
        ("schedule=cosine", "milestones"),
        ("milestones=[3,2]", "ascending"),
        ("images=null", "must be given for classification"),
        ("images.flip=2", "flip=2.0: must be between 0 and 1"),
        ("images.erasing=0.1", "unless crop='resized'"),
        ("lr=fast", "lr is 'fast'"),
        ("ema=1", "ema=1.0"),
        ("warmup_epochs=4", "warmup_epochs"),
        ("loss=l1", "another for classification"),
        ("precision=half", "precision is 'half'"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(change: str, said: str) -> None:
    with pytest.raises(lwdna.TrainingError, match=said):
        protocol(change)


def test_unknown_fields_and_damaged_files_are_refused() -> None:
    values = json.loads(protocol().to_json())
    with pytest.raises(lwdna.TrainingError, match="unknown field 'momentun'"):
        Protocol.from_dict({**values, "momentun": 0.9})
    with pytest.raises(lwdna.TrainingError, match="damaged"):
        Protocol.from_json(protocol().to_json()[:-9])
    with pytest.raises(lwdna.TrainingError, match="no TOML"):
        Protocol.from_toml("epochs = ")


def test_a_teacher_can_be_turned_on_and_off() -> None:
    taught = protocol('distillation={"weight": 0.4, "temperature": 4}')
    assert taught.distillation == PRESETS["tiny-imagenet-mobilenet"].distillation
    assert taught.but(["distillation=null"]) == protocol()


@pytest.mark.parametrize("schedule", ["step", "cosine"])
def test_rates_are_those_of_pytorch(schedule: str) -> None:
    model = nn.Linear(2, 2)
    steps = "milestones=[5,8]" if schedule == "step" else "milestones=[]"
    settings = protocol(f"schedule={schedule}", steps, "epochs=12", "lr=0.1")
    optimizer, scheduler = optimizer_of(model, settings)
    reference = torch.optim.SGD(model.parameters(), lr=0.1)
    kinds = torch.optim.lr_scheduler
    theirs = (
        kinds.MultiStepLR(reference, [5, 8])
        if schedule == "step"
        else kinds.CosineAnnealingLR(reference, 12)
    )
    for epoch in range(12):
        scheduler.step(epoch)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(theirs.get_last_lr()[0])
        reference.step()
        theirs.step()


def test_the_optimiser_is_pytorchs_as_the_papers_use_it() -> None:
    optimizer, _ = optimizer_of(nn.Linear(2, 2), PRESETS["imagenet-resnet50"])
    assert type(optimizer) is torch.optim.SGD and len(optimizer.param_groups) == 1
    group = optimizer.param_groups[0]
    assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.9, False, 1e-4)
    with pytest.raises(lwdna.TrainingError, match="optimizer='sgdd'"):
        optimizer_of(nn.Linear(2, 2), protocol("optimizer=sgdd"))
