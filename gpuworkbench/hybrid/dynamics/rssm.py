"""A recurrent state space model, small: an ensemble of them as one batch of matrix products.

State: a GRU's deterministic h and categorical z. The posterior q(z | h, x) sees the features x of a tick, the prior
p(z | h) does not, so that it can go on alone. Hafner et al. 2019 (PlaNet, arXiv 1811.04551) for the model, Hafner et
al. 2021 (DreamerV2, arXiv 2010.02193) for categorical z with straight-through gradients and KL balancing, free bits as
in Hafner et al. 2020 (arXiv 1912.01603).

Shapes: E members, B sequences, D features, H = HIDDEN, Z = GROUPS * CLASSES.
"""

from __future__ import annotations

import math
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

MEMBERS, HIDDEN, EMBED = 3, 24, 24
GROUPS, CLASSES = 4, 6
LATENT = GROUPS * CLASSES
UNIFORM_MIX = 0.02  # of the categorical probabilities: no KL is ever infinite
FREE_NATS = 0.5
KL_BALANCE = 0.8  # share of the KL's gradient that moves the prior
LOG_SD_RANGE = (-3.0, 1.5)


class State(NamedTuple):
    """h (E, B, H) and z (E, B, Z)."""

    h: Tensor
    z: Tensor


def initial_parameters(n_features: int, seed: int) -> dict[str, Tensor]:
    """Weights (E, in, out) and biases (E, 1, out) by name; the loss head starts at 0, so that nothing is predicted."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {
        "embed": (n_features, EMBED),
        "gru_x": (LATENT, 3 * HIDDEN),
        "gru_h": (HIDDEN, 3 * HIDDEN),
        "prior": (HIDDEN, LATENT),
        "posterior": (HIDDEN + EMBED, LATENT),
        "decoder": (HIDDEN + LATENT, n_features),
        "loss": (HIDDEN + LATENT, 2),
    }
    parameters = {}
    for name, (n_in, n_out) in sizes.items():
        weight = torch.randn(MEMBERS, n_in, n_out, generator=generator) / math.sqrt(n_in)
        parameters[f"{name}.weight"] = torch.zeros_like(weight) if name == "loss" else weight
        parameters[f"{name}.bias"] = torch.zeros(MEMBERS, 1, n_out)
    return parameters


class Rssm:
    """The model as functions of its parameters."""

    def __init__(self, parameters: dict[str, Tensor]) -> None:
        self.parameters = parameters

    def linear(self, name: str, x: Tensor) -> Tensor:
        """(E, B, in) -> (E, B, out)."""
        return torch.baddbmm(self.parameters[f"{name}.bias"], x, self.parameters[f"{name}.weight"])

    def start(self, n_sequences: int) -> State:
        """A state that knows nothing."""
        like = self.parameters["gru_h.weight"]
        return State(like.new_zeros(MEMBERS, n_sequences, HIDDEN), like.new_zeros(MEMBERS, n_sequences, LATENT))

    def advance(self, state: State) -> Tensor:
        """h of the next tick: a GRU cell (Cho et al. 2014) whose input is z."""
        gates_x, gates_h = self.linear("gru_x", state.z), self.linear("gru_h", state.h)
        reset_x, update_x, new_x = gates_x.chunk(3, -1)
        reset_h, update_h, new_h = gates_h.chunk(3, -1)
        update = torch.sigmoid(update_x + update_h)
        candidate = torch.tanh(new_x + torch.sigmoid(reset_x + reset_h) * new_h)
        return torch.lerp(candidate, state.h, update)

    def prior(self, h: Tensor) -> Tensor:
        """Probabilities (E, B, GROUPS, CLASSES) of z without a look."""
        return _probabilities(self.linear("prior", h))

    def posterior(self, h: Tensor, embedded: Tensor) -> Tensor:
        """Probabilities (E, B, GROUPS, CLASSES) of z with the tick's features embedded (E, B, EMBED)."""
        return _probabilities(self.linear("posterior", torch.cat((h, embedded), -1)))

    def embed(self, x: Tensor) -> Tensor:
        """(E, B, D) -> (E, B, EMBED)."""
        return torch.tanh(self.linear("embed", x))

    def loss_head(self, state: State) -> tuple[Tensor, Tensor]:
        """Mean and log-deviation (E, B) of what the trend misses, in units of its running deviation."""
        out = self.linear("loss", torch.cat(state, -1))
        return out[..., 0], out[..., 1].clamp(*LOG_SD_RANGE)

    def filter(self, x: Tensor) -> State:
        """The state after ticks x (B, T, D), with z as its probabilities: the same whenever it is asked for."""
        state = self.start(x.shape[0])
        embedded = self.embed(x.transpose(0, 1).reshape(1, -1, x.shape[-1]).expand(MEMBERS, -1, -1))
        for tick in embedded.unflatten(1, (x.shape[1], x.shape[0])).unbind(1):
            h = self.advance(state)
            state = State(h, self.posterior(h, tick).flatten(2))
        return state

    def imagine(self, state: State, ticks: int) -> list[State]:
        """The states of the next ticks by the prior alone."""
        states = []
        for _ in range(ticks):
            h = self.advance(state)
            state = State(h, self.prior(h).flatten(2))
            states.append(state)
        return states


def kl_loss(posterior: Tensor, prior: Tensor) -> Tensor:
    """Balanced KL(posterior || prior) in nats, summed over groups, mean over (E, B), below FREE_NATS free."""
    to_prior = _kl(posterior.detach(), prior).clamp(min=FREE_NATS)
    to_posterior = _kl(posterior, prior.detach()).clamp(min=FREE_NATS)
    return (KL_BALANCE * to_prior + (1.0 - KL_BALANCE) * to_posterior).mean()


def sample(probabilities: Tensor, generator: torch.Generator) -> Tensor:
    """One-hot z (E, B, Z), with the gradient of the probabilities (straight through)."""
    uniform = torch.rand(*probabilities.shape[:-1], 1, generator=generator).to(probabilities.device)
    drawn = (cumulated(probabilities.detach()) < uniform).sum(-1).clamp(max=CLASSES - 1)
    hot = torch.nn.functional.one_hot(drawn, CLASSES).to(probabilities.dtype)
    return (hot + probabilities - probabilities.detach()).flatten(2)


def cumulated(probabilities: Tensor) -> Tensor:
    """What cumsum over the last dimension gives on a CPU, which adds in fp64; a card's has no deterministic form."""
    return torch.stack(list(accumulate(probabilities.double().unbind(-1))), -1).to(probabilities.dtype)


def _probabilities(logits: Tensor) -> Tensor:
    softmax = torch.softmax(logits.unflatten(-1, (GROUPS, CLASSES)), -1)
    return (1.0 - UNIFORM_MIX) * softmax + UNIFORM_MIX / CLASSES


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p.log() - q.log())).sum((-1, -2))
