"""torch.compile computes what eager execution does, forward and backward."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch

from tests.integrations.networks import close, each, gradients, images, quick_two, shrunk


@pytest.fixture(autouse=True)
def _forget() -> None:
    torch._dynamo.reset()


def compared(name: str, backend: str) -> None:
    eager = shrunk(name)
    compiled = torch.compile(copy.deepcopy(eager), backend=backend, fullgraph=True)
    close(gradients(compiled), gradients(eager))
    for training in (True, False):  # after the step: batch norms have moved by the same amount
        eager.train(training)
        compiled.train(training)
        close(compiled(images()), eager(images()))
    close(compiled(images(3)), eager(images(3)))  # a second size makes the batch dynamic


@quick_two
def test_one_graph_without_breaks(name: str) -> None:
    compared(name, "aot_eager")


@pytest.mark.slow  # two minutes of C++ compiler
@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler")
@each
def test_inductor(name: str) -> None:
    compared(name, "inductor")


def test_in_place_the_names_stay() -> None:
    net, plain = shrunk("mobilenet").eval(), shrunk("mobilenet").eval()
    net.compile(backend="aot_eager", fullgraph=True)
    assert list(net.state_dict()) == list(plain.state_dict())
    close(net(images()), plain(images()))
