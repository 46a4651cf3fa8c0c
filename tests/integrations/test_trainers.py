"""Lightning and accelerate train a shrunk network as a plain loop does."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from tests.integrations.networks import close, images, shrunk, targets

each = pytest.mark.parametrize("name", ["resnet", "vit"])


def loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(images(), targets()), batch_size=2)


def sgd(network: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(network.parameters(), lr=0.05)


def plainly(name: str, *, bf16: bool = False) -> dict[str, Any]:
    """The state after one epoch of a loop without any library."""
    net = shrunk(name)
    optimizer = sgd(net)
    for x, y in loader():
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            outputs = net(x)
        F.cross_entropy(outputs.float(), y).backward()
        optimizer.step()
    return net.state_dict()


@each
def test_lightning(name: str, tmp_path: Path) -> None:
    import lightning  # late: it takes seconds

    class Task(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, network: Any) -> None:
            super().__init__()
            self.network = network

        def training_step(self, batch: Any, _: int) -> Any:
            x, y = batch
            return F.cross_entropy(self.network(x), y)

        def validation_step(self, batch: Any, _: int) -> None:
            assert not self.network.training
            self.log("loss", self.training_step(batch, _))

        def configure_optimizers(self) -> Any:
            return sgd(self)

    task = Task(shrunk(name))
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=True,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
    )
    trainer.fit(task, loader(), loader())
    close(task.network.state_dict(), plainly(name))
    trainer.save_checkpoint(tmp_path / "net.ckpt", weights_only=True)
    again = Task.load_from_checkpoint(tmp_path / "net.ckpt", network=shrunk(name))
    assert torch.equal(again.network.eval()(images()), task.network.eval()(images()))


@each
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate(name: str, precision: str, tmp_path: Path) -> None:
    import accelerate

    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision)
    own = shrunk(name)
    net, optimizer, batches = accelerator.prepare(own, sgd(own), loader())
    for x, y in batches:
        optimizer.zero_grad()
        accelerator.backward(F.cross_entropy(net(x), y))
        optimizer.step()
    accelerator.save_model(net, tmp_path)
    unwrapped = accelerator.unwrap_model(net, keep_fp32_wrapper=False)
    assert unwrapped is own
    close(own.state_dict(), plainly(name, bf16=precision == "bf16"), rtol=1e-4, atol=1e-5)
    again = shrunk(name)
    accelerate.load_checkpoint_in_model(again, tmp_path)
    assert torch.equal(again.eval()(images()), copy.deepcopy(own).eval()(images()))
