"""Hugging Face Hub: ``config.json`` (the DNA) and ``model.safetensors`` in a repository or folder.

Source: https://huggingface.co/docs/huggingface_hub/guides/integrations (``ModelHubMixin``).
"""

from __future__ import annotations

from json import JSONDecodeError
from pathlib import Path
from typing import Any

from huggingface_hub import ModelHubMixin, hf_hub_download
from torch import nn

from lwdna.errors import DnaError
from lwdna.files import HUB_CONFIGURATION, WEIGHTS, load, store


class HubNetwork(
    nn.Module,
    ModelHubMixin,
    library_name="lwdna",
    tags=["image-models", "channel-pruning"],
    paper_url="https://arxiv.org/abs/2006.16242",
):
    """A network with ``save_pretrained``, ``from_pretrained`` and ``push_to_hub``.

    It holds the network and calls it; ``net`` is the network itself. What is written and checked is
    what :func:`lwdna.save` and :func:`lwdna.load` write and check, and the folder can be given to
    ``lwdna.load``.

    Args:
        net: what :func:`lwdna.shrink`, ``rebuild`` or ``load`` returned.

    >>> HubNetwork(net).save_pretrained("r50")  # doctest: +SKIP
    >>> net = HubNetwork.from_pretrained("r50").net  # doctest: +SKIP
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the network returns."""
        return self.net(*args, **kwargs)

    def _save_pretrained(self, save_directory: Path) -> None:
        store(self.net, save_directory, HUB_CONFIGURATION)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, **options: Any
    ) -> HubNetwork:
        """The network of a repository on the Hub, or of a local folder.

        Args:
            pretrained_model_name_or_path: ``"name/network"``, or the folder.
            options: ``device``, ``trust`` and ``example_inputs`` of :func:`lwdna.load`, and the
                mixin's (``revision``, ``token``, ``cache_dir`` ...).

        Raises:
            DnaError, SourceError: see :func:`lwdna.load`.
        """
        try:
            found: HubNetwork = super().from_pretrained(pretrained_model_name_or_path, **options)
            return found
        except (JSONDecodeError, UnicodeDecodeError, RecursionError, AttributeError) as e:
            # The mixin reads the configuration before this class does, and takes it for an object.
            raise DnaError(f"{HUB_CONFIGURATION} is damaged: {type(e).__name__}: {e}") from e

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **options: Any,  # of lwdna.load: device, trust, example_inputs
    ) -> HubNetwork:
        folder = Path(model_id)
        if not folder.is_dir():
            files = [
                hf_hub_download(
                    repo_id=model_id,
                    filename=name,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                )
                for name in (HUB_CONFIGURATION, WEIGHTS)
            ]
            folder = Path(files[0]).parent
        return cls(load(folder, **options))
