"""torch.export, strict and not, with a dynamic batch; ONNX and ONNX Runtime."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.export import Dim, ExportedProgram

from tests.integrations.networks import close, each, images, quick_two, shrunk

BATCH = ({0: Dim("batch", min=1, max=64)},)


def exported(net: Any, strict: bool = False) -> ExportedProgram:
    return torch.export.export(net, (images(),), dynamic_shapes=BATCH, strict=strict)


@pytest.mark.parametrize("strict", [False, True])
@each
def test_the_exported_program_computes_the_same(name: str, strict: bool) -> None:
    net = shrunk(name).eval()
    program = exported(net, strict)
    assert program.state_dict.keys() <= net.state_dict().keys()
    for n in (4, 1, 3):
        close(program.module()(images(n)), net(images(n)))


@each
def test_training_is_exported_as_training(name: str) -> None:
    net, other = shrunk(name).train(), shrunk(name).train()
    module = exported(net).module()
    close(module(images(3)), other(images(3)))
    close(dict(module.named_buffers()), dict(other.named_buffers()))


def test_an_exported_program_is_saved_and_loaded() -> None:
    net, file = shrunk("resnet").eval(), io.BytesIO()
    torch.export.save(exported(net), file)
    file.seek(0)
    close(torch.export.load(file).module()(images(2)), net(images(2)))


@quick_two
def test_onnx_runtime_computes_the_same(name: str, tmp_path: Path) -> None:
    import onnxruntime as runtime

    net, path = shrunk(name).eval(), tmp_path / "net.onnx"
    program = torch.onnx.export(
        net,
        (images(),),
        dynamo=True,
        dynamic_shapes=({0: Dim("batch")},),
        input_names=["images"],
        output_names=["logits"],
        verbose=False,
    )
    program.save(path)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for n in (4, 1, 3):
        (found,) = session.run(None, {"images": images(n).numpy()})
        close(torch.from_numpy(found), net(images(n)).detach())
    weights = 4 * sum(t.numel() for t in net.state_dict().values())
    assert path.stat().st_size < weights + 300_000  # physically smaller: nothing is masked
