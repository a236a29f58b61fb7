"""Widening an EigenGAN without changing what it computes: more channels, which nothing listens to at first.

New channels are as drawn, and the weights by which old ones listen to them are zero. So the first step finds the same
images and scores, new channels have something to say from then on, and no two of them are alike.

Source:
    Chen, Goodfellow, Shlens, Net2Net, ICLR 2016 (arXiv 1511.05641), widens by copies. Under Adam two copies stay alike
    for long, since their gradients differ by a factor alone; hence drawn ones.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ..generators.eigengan import BASE

FLATTENED = {"base.weight": 0, "base.bias": 0, "hidden.weight": 1, "code.weight": 1}
"""Weights of the linear layers at the 4x4 maps -> the axis that runs over the 16 places, and in each over channels."""
FED_BY_SUBSPACE = ("inject1.weight", "inject2.weight")
"""Weights that may hear new channels at once, since a widened subspace has nothing in them yet."""


def widened(theirs: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Return weights for `network` that compute what a narrower one of its kind computes.

    Args:
        theirs: weights of the narrower one. What it lacks is as drawn; no tensor of it may be wider.
        network: the generator or the discriminator of an EigenGAN, as drawn.

    Returns:
        The state of `network`. Tensors of one shape are theirs.
    """
    made = {name: weight.detach().clone() for name, weight in network.state_dict().items()}
    modules = dict(network.named_modules())
    for name, narrow in theirs.items():
        wide = made[name]
        if name in FLATTENED:
            narrow, wide = (each.unflatten(FLATTENED[name], (BASE * BASE, -1)) for each in (narrow, wide))
        old = tuple(slice(size) for size in narrow.shape)
        owner, _, role = name.rpartition(".")
        if role in ("basis", "offset"):
            wide.zero_()  # U stays orthonormal
        elif role == "weight" and not name.endswith(FED_BY_SUBSPACE):
            axis = 0 if isinstance(modules[owner], nn.ConvTranspose2d) else 2 if name in FLATTENED else 1
            new = (*old[:axis], slice(narrow.shape[axis], None), *old[axis + 1 :])
            wide[new] = 0
        wide[old] = narrow
    return made
