"""Training: baseline and shrunk network under one identical protocol.

>>> result = fit(model, PRESETS["cifar-resnet56"], data, seed=0, output="run")  # doctest: +SKIP
>>> result.metrics["test/top1"], result.cost["macs"]  # doctest: +SKIP
"""

try:
    import lightning_fabric  # noqa: F401
    import torchmetrics  # noqa: F401
except ModuleNotFoundError as e:
    raise ModuleNotFoundError(
        f'lwdna.training needs {e.name}: pip install "lwdna[train]"', name=e.name
    ) from e

from lwdna.training.data import Data, Pictures, TensorImages, tensor_data
from lwdna.training.evaluation import evaluate
from lwdna.training.fitting import fit
from lwdna.training.machine import Machine
from lwdna.training.networks import open_network
from lwdna.training.opening import open_data
from lwdna.training.preparation import Images, Patches
from lwdna.training.presets import PRESETS
from lwdna.training.protocol import Protocol, read_protocol
from lwdna.training.result import Result, read_result

__all__ = [
    "PRESETS",
    "Data",
    "Images",
    "Machine",
    "Patches",
    "Pictures",
    "Protocol",
    "Result",
    "TensorImages",
    "evaluate",
    "fit",
    "open_data",
    "open_network",
    "read_protocol",
    "read_result",
    "tensor_data",
]
