"""What a model is asked and what it answers, as token ids; and how the next token of one answer is chosen."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class AnswerRequest:
    """One question as ids, and how to answer it. `seed` matters only where temperature is above 0.

    With `top_log_probabilities` (0 or more) the answer tells the log-probability of each of its tokens, and of so
    many of the likeliest ones beside it. The first `n_opening` ids (a system prompt, worked examples) are read by
    themselves, once for all the requests of a model that open alike.
    """

    ids: tuple[int, ...]
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop_strings: tuple[str, ...] = ()
    top_log_probabilities: int | None = None
    n_opening: int = 0


@dataclass(frozen=True)
class ScoreRequest:
    """A question as ids and a given continuation, whose log-probabilities are asked for. Nothing is generated."""

    ids: tuple[int, ...]
    continuation_ids: tuple[int, ...]
    n_opening: int = 0


@dataclass(frozen=True)
class TokenLogProbability:
    """Natural log-probability of a chosen token, under the model itself (temperature 1), and of the likeliest tokens."""

    token: int
    log_probability: float
    likeliest: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Answer:
    """Ids that were generated (without the stop token) and why they ended: `stop` or `length`.

    For a ScoreRequest: the continuation's ids, with their log-probabilities, and `scored`.
    """

    ids: tuple[int, ...]
    finish_reason: str
    log_probabilities: tuple[TokenLogProbability, ...] = ()


def generator_of(request: AnswerRequest) -> torch.Generator:
    """A request's own random numbers, made on the CPU everywhere, so that one seed draws the same on every device."""
    return torch.Generator(device="cpu").manual_seed(request.seed)


def choose_token(logits: torch.Tensor, request: AnswerRequest, generator: torch.Generator) -> int:
    """The next token of one row from its logits (n_vocabulary,); for a temperature above 0."""
    probabilities = torch.softmax(logits.cpu() / request.temperature, dim=-1)
    if request.top_p < 1.0:
        ordered, order = probabilities.sort(descending=True)
        beyond = ordered.cumsum(-1) - ordered > request.top_p
        probabilities[order[beyond]] = 0.0
    return int(torch.multinomial(probabilities, 1, generator=generator))


def log_probability_of(log_probabilities: torch.Tensor, token: int, n_likeliest: int) -> TokenLogProbability:
    """One token's log-probability and the likeliest ones' from a row of log-probabilities (n_vocabulary,)."""
    values, ids = log_probabilities.topk(n_likeliest) if n_likeliest else (torch.empty(0), torch.empty(0))
    return TokenLogProbability(token, float(log_probabilities[token]), tuple(zip(map(int, ids.tolist()), values.tolist(), strict=True)))
