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
from lwdna.files import HUB_CONFIGURATION, WEIGHTS, load, replace_file, store

#: The model card.
CARD = "README.md"


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

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        model_card_kwargs: dict[str, Any] | None = None,
        **push_options: Any,
    ) -> str | None:
        """Save into a folder, as :func:`lwdna.save` does, and upload it if asked to.

        The mixin's own would remove the old configuration before it writes anything.

        Args:
            save_directory: the folder, made if it is not there. A network in it is replaced.
            repo_id: on the Hub; by default the name of the folder.
            push_to_hub: whether to upload, too.
            model_card_kwargs: fill the template of the model card, which is written if there is
                none.
            push_options: of ``push_to_hub``.

        Returns:
            The address of the commit if it was uploaded.

        Raises:
            DnaError, SourceError: see :func:`lwdna.save`.
        """
        folder = Path(save_directory)
        store(self.net, folder, HUB_CONFIGURATION)
        if not (folder / CARD).exists():
            card = self.generate_model_card(**(model_card_kwargs or {}))
            replace_file(folder / CARD, card.save)
        if not push_to_hub:
            return None
        address: str = self.push_to_hub(
            repo_id=repo_id or folder.name, model_card_kwargs=model_card_kwargs, **push_options
        )
        return address

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
        for name in ("self", "net"):  # the mixin looks for arguments of __init__ in the file
            options.pop(name, None)  # lwdna.load refuses fields of these names
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
