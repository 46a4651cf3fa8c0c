"""Copies, pickles and checkpoints: PyTorch's own and timm's."""

from __future__ import annotations

import argparse
import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import load_checkpoint, resume_checkpoint
from timm.utils import CheckpointSaver
from torch import nn

import lwdna
from lwdna.fx_passes import verify
from tests.integrations.networks import close, each, images, loss_of, original, shrunk


def moved(net: Any) -> Any:
    """The network with other weights and statistics than it was made with."""
    with torch.no_grad():
        for tensor in net.state_dict().values():
            if tensor.is_floating_point():
                tensor.mul_(1.01).add_(0.01)
    return net


@each
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_a_copy_is_the_same_network_and_shares_nothing(name: str, copied: Any) -> None:
    net = moved(shrunk(name))
    other = copied(net)
    assert other.code == net.code and other.meta["lwdna"] == net.meta["lwdna"]
    for training in (True, False):
        assert torch.equal(net.train(training)(images()), other.train(training)(images()))
    before = other.eval()(images())
    moved(net)
    assert torch.equal(other(images()), before)


@each
def test_a_state_dict_is_saved_and_read_without_pickled_code(name: str, tmp_path: Path) -> None:
    net = moved(shrunk(name)).eval()
    torch.save(net.state_dict(), tmp_path / "net.pt")
    other = shrunk(name).eval()
    other.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True), strict=True)
    assert torch.equal(other(images()), net(images()))


# --- timm's checkpoints ---


@each
def test_timm_saves_and_resumes(name: str, tmp_path: Path) -> None:
    net = shrunk(name)
    optimizer = timm.optim.create_optimizer_v2(net, "adamw", lr=1e-3)
    loss_of(net).backward()
    optimizer.step()
    ema = timm.utils.ModelEmaV3(net)
    saver = CheckpointSaver(
        net,
        optimizer,
        args=argparse.Namespace(model=name),
        model_ema=ema,
        checkpoint_dir=str(tmp_path),
    )
    saver.save_checkpoint(epoch=3, metric=0.5)
    (path,) = tmp_path.glob("checkpoint-3*")

    other = shrunk(name)
    resumed = timm.optim.create_optimizer_v2(other, "adamw", lr=1e-3)
    assert resume_checkpoint(other, str(path), resumed, log_info=False) == 4
    for key, value in net.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key
    for network, step in ((net, optimizer), (other, resumed)):
        step.zero_grad()
        loss_of(network).backward()
        step.step()
    close(other.state_dict(), net.state_dict())

    averaged = shrunk(name)
    load_checkpoint(averaged, str(path), use_ema=True)
    assert torch.equal(averaged.eval()(images()), ema.module(images()))


def test_a_checkpoint_of_other_widths_is_refused(tmp_path: Path) -> None:
    net = shrunk("resnet")
    torch.save(original("resnet").state_dict(), tmp_path / "original.pt")
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_checkpoint(net, str(tmp_path / "original.pt"))
    assert net.state_dict().keys() == before.keys()


@each
def test_trained_weights_go_through_the_original(name: str, tmp_path: Path) -> None:
    """timm loads the checkpoint into the original; the shrunk network inherits what is kept."""
    trained = original(name).eval()
    verify.stir(trained)
    torch.save({"state_dict": trained.state_dict()}, tmp_path / "trained.pt")

    model = original(name).eval()
    load_checkpoint(model, str(tmp_path / "trained.pt"))
    net: Any = lwdna.shrink(
        model,
        0.6,
        widen=1,
        weights="inherit",
        criterion="magnitude",
        example_inputs=images(),
        progress=False,
    )
    gm = lwdna.capture(trained, images())
    graph = lwdna.analyse(gm, images())
    copies = net.meta["lwdna"].copies(graph)
    verify.masked_equivalence(gm, graph, copies, net, images())
    for key, value in lwdna.shrink_graph(gm, graph, copies).state_dict().items():
        assert torch.equal(net.state_dict()[key], value), key


def test_a_new_classifier_is_put_in_by_name() -> None:
    net = shrunk("mobilenet")
    net.classifier = nn.Linear(net.head_hidden_size, 3)
    assert net(images()).shape == (4, 3)
    assert timm.utils.unwrap_model(net) is net
    assert list(timm.utils.get_state_dict(net)) == list(net.state_dict())
