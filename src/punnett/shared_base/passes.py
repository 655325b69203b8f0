"""Sequences laid end to end in, hidden states out: one forward pass of the base over the rows of many students.

No token is padding: the linear layers see one long row of tokens, attention sees each sequence by itself. What a
pass is made of (whose adapter is where, which sequence ends where, which cache is read) lies in a thread-local
place while the pass runs, so that several threads may pass through one resident base at a time.
"""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch

# Matrix libraries take other kernels for few rows, and then round otherwise. From so many on (16 for MKL and the small
# real models; narrower ones need more, so it is measured for each) a row's result does not depend on how many rows
# there are. No pass is ever smaller.
FEWEST_TOKENS = 16

_here = threading.local()


class Adapters(Protocol):
    """Whose adapter is at work on which tokens of a pass."""

    def linear(self, site: int, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """The base's product of (..., n_tokens, n_in) and what the adapters add to it."""


class Attention(Protocol):
    """How the tokens of a pass see each other and what came before them."""

    def attend(self, module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, settings: "AttentionSettings") -> torch.Tensor:
        """query (1, heads, n_tokens, width) to (1, n_tokens, heads, width)."""


@dataclass(frozen=True)
class AttentionSettings:
    """What a layer says of its attention: scale of the scores, cap on them (Gemma 2), reach back in tokens."""

    scale: float
    cap: float | None
    window: int | None


@dataclass(frozen=True)
class FlatPass:
    """What one forward pass is made of."""

    attention: Attention
    adapters: Adapters | None


def current_pass() -> FlatPass | None:
    """The pass that runs on this thread, if any."""
    return getattr(_here, "value", None)


@contextlib.contextmanager
def _running(flat_pass: FlatPass) -> Iterator[None]:
    _here.value = flat_pass
    try:
        yield
    finally:
        _here.value = None


def hidden_states(model: Any, ids: list[int], positions: list[int], attention: Attention, adapters: Adapters | None) -> torch.Tensor:
    """The decoder's last hidden states (n_tokens, width) of `ids` (n_tokens,) at `positions` (n_tokens,).

    Fewer ids than the model's fewest are filled up with tokens that nobody sees.
    """
    n = len(ids)
    filling = [0] * max(0, fewest_tokens(model) - n)
    flat = torch.tensor([ids + filling], device=model.device)
    places = torch.tensor([positions + filling], device=model.device)
    with _running(FlatPass(attention, adapters)):
        output = model.get_decoder()(input_ids=flat, position_ids=places, use_cache=False)
    return output.last_hidden_state[0, :n]


def fewest_tokens(model: Any) -> int:
    """Tokens that a pass of this model has at least; see `share.find_fewest_tokens`."""
    return getattr(model, "punnett_fewest_tokens", FEWEST_TOKENS)


def logits_of(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Logits (n, n_vocabulary) of hidden states (n, width), in float32; Gemma 2 squashes them after the head, so we do."""
    n = len(hidden)
    if n < fewest_tokens(model):
        hidden = torch.cat([hidden, hidden.new_zeros(fewest_tokens(model) - n, hidden.shape[1])])
    return cap_logits(model, model.get_output_embeddings()(hidden)[:n].float())


def cap_logits(model: Any, logits: torch.Tensor) -> torch.Tensor:
    """Logits as the model gives them out, from those of its last linear layer."""
    cap = logit_cap(model)
    return torch.tanh(logits / cap) * cap if cap else logits


def logit_cap(model: Any) -> float | None:
    """The number beyond which a model's logits never go, if it has one."""
    return getattr(model.config.get_text_config(), "final_logit_softcapping", None)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Keep a product on one thread: those with a long inner dimension and a small result round otherwise on more."""
    usual = torch.get_num_threads()
    if usual == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(usual)
