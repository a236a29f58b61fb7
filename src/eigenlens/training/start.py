"""A start from what has learnt already: a generator's weights, and the discriminator of another run.

A discriminator which knows nothing sets a generator back that knows much. So `RunConfig.generator_from_kimg` lets the
discriminator learn alone first, and `warmup_kimg` lets the generator set out slowly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..files import differing_keys
from ..generator import Generator
from .adversaries import Adversaries


def start_from(training: Adversaries, generator: Generator, state: Mapping[str, Any] | None = None) -> None:
    """Give a training that has not begun weights to begin with, in place of those drawn.

    Args:
        training: of the same family and shape; it may have more channels where its family can be `widened`.
        generator: its weights are taken over.
        state: of another run; its discriminator is taken over, with the moments of its optimiser. What may join it
            (`joining`: a judge, say) and is not there is as drawn; so are the moments of a widened one. None: all of
            it is.

    Raises:
        UserError: where a shape does not fit.
    """
    if generator.family != training.family:
        raise UserError(f"{generator.name} is {generator.family}, this run {training.family}; give another --preset")
    theirs, ours = (vars(network.config) for network in (generator.network, training.generator))
    keys = [key for key in differing_keys(theirs, ours) if key not in training.widths]
    if keys:
        apart = ", ".join(f"{key} ({theirs[key]}, here {ours[key]})" for key in keys)
        raise UserError(f"{generator.name} is of another shape: {apart}; give settings that fit it")
    weights = _fitted(generator.network.state_dict(), training.generator, training, generator.name)
    for network in (training.generator, training.averaged):
        network.load_state_dict(weights)
    if state is not None:
        drawn = training.discriminator.state_dict()
        joining = {name: value for name, value in drawn.items() if name.startswith(training.joining)}
        given = joining | state["discriminator"]
        weights = _fitted(given, training.discriminator, training, "the discriminator to start from")
        training.discriminator.load_state_dict(weights)
        if weights is given:
            _take_moments(training.discriminator, training.discriminator_optimiser, state)


def _fitted(given: dict[str, Tensor], network: nn.Module, training: Adversaries, what: str) -> dict[str, Tensor]:
    """Return weights as `network` takes them: those given where they fit, else widened; raise UserError otherwise."""
    own = network.state_dict()
    is_wider = given.keys() == own.keys() and any(given[name].shape != weight.shape for name, weight in own.items())
    if training.widths and is_wider and all(_is_within(given[name], weight) for name, weight in own.items()):
        return training.widened(given, network)
    _check(given, own, what)
    return given


def _is_within(narrow: Tensor, wide: Tensor) -> bool:
    return narrow.dim() == wide.dim() and all(n <= w for n, w in zip(narrow.shape, wide.shape, strict=True))


def _check(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor], what: str) -> None:
    """Raise UserError where theirs and ours are not the same names with the same shapes."""
    for name in dict.fromkeys([*theirs, *ours]):
        its, own = (tuple(each[name].shape) if name in each else None for each in (theirs, ours))
        if its != own:
            raise UserError(
                f"{what} does not fit: its {name} has the shape {its or '-'}, that of this run {own or '-'}; "
                "give the settings that it was trained with"
            )


def _take_moments(network: nn.Module, optimiser: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Take over an optimiser's moments of the parameters that a state has, which stand in the same order there."""
    name_of = {id(parameter): name for name, parameter in network.named_parameters()}
    names = [name_of[id(parameter)] for group in optimiser.param_groups for parameter in group["params"]]
    known = [place for place, name in enumerate(names) if name in state["discriminator"]]
    moments = state["discriminator_optimiser"]["state"]
    own = optimiser.state_dict()
    own["state"] = {place: moments[number] for number, place in enumerate(known) if number in moments}
    optimiser.load_state_dict(own)
