"""The paper's criteria: gradient and magnitude of the hypernetwork's latent vectors."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lwdna.errors import ScoringError
from lwdna.graph import ChannelGraph
from lwdna.scoring.context import ScoringContext, preserved
from lwdna.scoring.criteria import Saliency, criterion
from lwdna.scoring.gradients import opened_gains, over_batches
from lwdna.scoring.hypernet import EMBEDDING, Hypernet, Layer
from lwdna.scoring.loss import batch_loss


@criterion("latent-grad")
def latent_grad(
    context: ScoringContext, *, normalize: bool = True, embedding: int = EMBEDDING
) -> Saliency:
    """|∂L/∂z| of the hypernetwork's latent vectors, averaged over the batches before the modulus.

    The network runs in training mode (batch norms use the batch) with generated weights in place
    of its own; its parameters, buffers, gradients and mode are untouched. Gains that are zero
    everywhere (``zero_init_residual``, ReZero) count as one: they would keep every gradient out
    of their branch.

    Args:
        context: network, graph, batches, loss and options.
        normalize: divide each group's saliencies by the group's largest (the paper's
            grad_normalize): without it early layers win all channels.
        embedding: embedding size E of the hypernetwork.

    Returns:
        Saliency, shape (units,), float64. A unit that occurs in no generated weight (a position
        table's or a norm's alone, say) scores 0.

    Raises:
        ScoringError: no batch, no weight to generate, a loss that is not finite or does not
            depend on the weights, or a gradient that is not finite.

    Source: Li et al., "The Heterogeneity Hypothesis", CVPR 2021; released code
    (https://github.com/ofsoundof/Heterogeneity_Hypothesis, gather_latent_vector of
    model_dhp/dhp_base.py, with the options grad_prune and grad_normalize).
    """
    run = _Run(context, embedding)
    sums = context.graph.gathered(over_batches(context, run.batch, "latent-grad"))
    result: Saliency = np.abs(sums)
    context.finished["latent", embedding] = run.hypernet, run.trained
    return per_group(context.graph, result) if normalize else result


@criterion("latent-magnitude")
def latent_magnitude(
    context: ScoringContext, *, normalize: bool = False, embedding: int = EMBEDDING
) -> Saliency:
    """|z| itself, after the SGD steps that the options ask for; without them |z| at the draw.

    The released ResNet-ImageNet path, which takes two steps. Its scores rank-correlate with those
    of the draw, so it is close to a random selection.

    Args:
        context: as for ``latent-grad``; batches and loss are used for SGD steps only.
        normalize: divide each group's saliencies by the group's largest.
        embedding: embedding size E of the hypernetwork.

    Returns:
        Saliency, shape (units,), float64.

    Raises:
        ScoringError: as for ``latent-grad``.

    Source: released code (https://github.com/ofsoundof/Heterogeneity_Hypothesis,
    util/trainer_hh_grad.py: the first two batches of an epoch).
    """
    run = _Run(context, embedding)
    run.train()
    context.finished["latent", embedding] = run.hypernet, run.trained
    result: Saliency = run.hypernet.z.abs().double().cpu().numpy()
    return per_group(context.graph, result) if normalize else result


def generated(context: ScoringContext, *, embedding: int = EMBEDDING) -> dict[str, Tensor]:
    """The weights that the latent criteria score: those of the paper's result.

    Args:
        context: network, graph and seed; with SGD steps in its options, batches and loss too.
        embedding: embedding size E.

    Returns:
        Parameter name -> tensor of the parameter's shape, dtype and device: the generated weights
        and, after SGD steps, the ordinary parameters that were trained along.

    Source: released code (https://github.com/ofsoundof/Heterogeneity_Hypothesis,
    reset_after_searching of model_dhp/dhp_base.py).
    """
    with preserved(context.network, context.seed):
        if ("latent", embedding) not in context.finished:
            latent_magnitude(context, embedding=embedding)
        hypernet, trained = context.finished["latent", embedding]
        tensors = hypernet.weights() | trained
        return {name: tensor.detach() for name, tensor in tensors.items()}


class _Run:
    """A hypernetwork on its way through the batches."""

    def __init__(self, context: ScoringContext, embedding: int) -> None:
        sgd = context.options.sgd
        context.network.train()
        self.context, self.hypernet = context, Hypernet(context, embedding=embedding, sgd=sgd)
        if not self.hypernet.layers:
            raise ScoringError(
                "the network has no convolution or linear weight besides the classifier, so there "
                "is nothing to generate: score with 'magnitude', 'random' or 'uniform'"
            )
        made = {layer.name for layer in self.hypernet.layers}
        self._gains = opened_gains(context.network)
        self.trained: dict[str, Tensor] = {}
        self._optimizer: torch.optim.SGD | None = None
        if sgd is not None:
            self.trained = {
                name: p.detach().clone().requires_grad_()
                for name, p in context.network.named_parameters()
                if name not in made and name not in self._gains and p.is_floating_point()
            }
            if self.trained:
                self._optimizer = sgd.optimizer(list(self.trained.values()))

    def train(self) -> None:
        """Go through the batches for the SGD steps alone, if the options ask for any."""
        if self.context.options.sgd is not None:
            over_batches(self.context, self.batch, "latent-magnitude")

    def batch(self, k: int) -> Saliency:
        """∂L/∂z of batch ``k``, shape (units,); one SGD step follows if the options say so."""
        ranks, hypernet = self.context.ranks, self.hypernet
        weights = hypernet.weights()
        whole: dict[str, Tensor] = {}
        # To train a weight its gradient over all ranks is needed; for ∂L/∂z alone it is used up
        # as soon as the backward pass has made it, and only the sums over ranks are exchanged.
        train_together = ranks.size > 1 and self.context.options.sgd is not None
        seen: set[str] = set()
        for layer in hypernet.layers:

            def take(weight: Tensor, layer: Layer = layer) -> None:
                grad, weight.grad = weight.grad, None
                assert grad is not None
                seen.add(layer.name)
                if train_together:
                    whole[layer.name] = grad
                else:
                    hypernet.absorb(layer, grad, k)

            weights[layer.name].register_post_accumulate_grad_hook(take)
        loss = batch_loss(self.context, k, weights | self._gains | self.trained)
        leaves = [*weights.values(), *self.trained.values()]
        torch.autograd.backward(loss, inputs=leaves)
        if not seen:
            raise ScoringError(
                f"the loss of batch {k} depends on no convolution or linear weight: compute it "
                "from the network's outputs"
            )
        if train_together:
            others = [t.grad for t in self.trained.values() if t.grad is not None]
            ranks.sum_([*whole.values(), *others])
            for layer in hypernet.layers:
                if layer.name in whole:
                    hypernet.absorb(layer, whole.pop(layer.name), k)
        if self._optimizer is not None:
            self._optimizer.step()
            self._optimizer.zero_grad()
        grads = hypernet.finish()
        if not train_together:
            ranks.sum_([torch.from_numpy(grads)])
        return grads


def per_group(graph: ChannelGraph, saliency: Saliency) -> Saliency:
    """Each group divided by its largest saliency; a group of zeros stays."""
    most = np.zeros(len(graph.groups))
    np.maximum.at(most, graph.group_of, saliency)
    result: Saliency = saliency / np.where(most > 0, most, 1.0)[graph.group_of]
    return result
