"""Tiny random models of many families, students that train on them, and the plain loops that both are compared with."""

import functools
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers

from punnett.serving.decode import RunningBatch, Ticket
from punnett.serving.requests import Answer, AnswerRequest, ScoreRequest
from punnett.shared_base.adapter import Adapter, attach_adapter, initial_state
from punnett.shared_base.attention import SequenceAttention
from punnett.shared_base.linear import Piece, ReadingAdapters
from punnett.shared_base.passes import hidden_states, logits_of
from punnett.shared_base.share import SharedBase
from punnett.spec.key import derive_seed
from punnett.spec.student import Recipe
from punnett.training.concurrent import Event, Failed, Finished, Stepped, Together, TrainingJob, train_together
from punnett.training.schedule import Example, planned_steps

N_TOKENS, STOP_ID = 96, 2
SIZES = {
    "vocab_size": N_TOKENS,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": STOP_ID,
    "pad_token_id": 0,
}
SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Qwen2": {},
    "Qwen3": {"head_dim": 16},
    "Gemma2": {"head_dim": 16, "sliding_window": 5, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0},
    "Gemma3Text": {"head_dim": 16, "sliding_window": 5, "num_hidden_layers": 3, "layer_types": SLIDING},
    "Mistral": {"sliding_window": 5},
    "Phi3": {},
}


def tiny_model(family: str = "Llama", **settings: Any) -> Any:
    """A random model with weights large enough for every layer to matter; attention by the book. The same numbers each time."""
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **FAMILIES.get(family, {}), **settings}, attn_implementation="eager")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, f"{family.removesuffix('Text')}ForCausalLM")(config)
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.data.normal_(0.0, 1.5 * parameter.shape[1] ** -0.5)
    return model.requires_grad_(False).eval()


@functools.lru_cache(maxsize=1)
def wide_base() -> SharedBase:
    """A Llama whose rank-16 adapters and products are large enough to be spread over several threads."""
    return SharedBase(tiny_model(hidden_size=64, intermediate_size=192, num_hidden_layers=3))


def draw(generator: torch.Generator, n: int) -> tuple[int, ...]:
    """Ids that are no control tokens."""
    return tuple(torch.randint(3, N_TOKENS, (n,), generator=generator).tolist())


def drawn(seed: int, n: int) -> tuple[int, ...]:
    """As `draw`, from a seed."""
    return draw(torch.Generator().manual_seed(seed), n)


def examples(n: int, seed: int = 0, longest: int = 12) -> list[Example]:
    """Rows of different lengths."""
    generator = torch.Generator().manual_seed(seed)

    def length(most: int) -> int:
        return int(torch.randint(1, most + 1, (), generator=generator))

    return [Example(f"slot-{i}", draw(generator, length(longest)), draw(generator, length(longest))) for i in range(n)]


def job(name: str, n_examples: int = 6, seed: int = 0, longest: int = 12, **recipe: Any) -> TrainingJob:
    """A student of a few steps; its examples are drawn by its name."""
    settings = {"lora_rank": 4, "learning_rate": 1e-2, "batch_size": 2, **recipe}
    return TrainingJob(name, examples(n_examples, derive_seed(name), longest), Recipe(**settings), seed)


class Outcome:
    """What became of a student: its losses and gradient norms, and its adapter or the error."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.adapter: Adapter | None = None
        self.error: Exception | None = None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Outcome) or (self.adapter is None) != (other.adapter is None):
            return False
        same = self.adapter is None or other.adapter is None or torch.equal(self.adapter.flat, other.adapter.flat)
        return same and self.losses == other.losses and self.norms == other.norms and type(self.error) is type(other.error)

    __hash__ = None


def outcomes(events: Iterable[Event]) -> dict[str, Outcome]:
    """What became of each student."""
    found: dict[str, Outcome] = {}
    for event in events:
        outcome = found.setdefault(event.name, Outcome())
        match event:
            case Stepped(step=step):
                outcome.losses.append(step.loss)
                outcome.norms.append(step.gradient_norm)
            case Finished(adapter=adapter):
                outcome.adapter = adapter
            case Failed(error=error):
                outcome.error = error
    return found


def trained(shared: SharedBase, jobs: list[TrainingJob], **together: int) -> dict[str, Outcome]:
    """Students that were trained together."""
    return outcomes(train_together(shared, jobs, Together(**together)))


def plainly_trained(model: Any, student: TrainingJob) -> tuple[Any, list[float]]:
    """A PEFT model and its losses, by PEFT, AdamW and rows padded to the right."""
    recipe = student.recipe
    peer = attach_adapter(model, recipe.lora_rank, recipe.lora_alpha, derive_seed(student.seed, "adapter"))
    parameters = [p for p in peer.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    losses = []
    for planned in planned_steps(student.examples, recipe, student.seed):
        optimizer.param_groups[0]["lr"] = planned.learning_rate
        loss = padded_loss(peer, planned.batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, recipe.gradient_clip)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return peer, losses


def padded_loss(model: Any, batch: list[Example]) -> torch.Tensor:
    """Token-mean loss by transformers itself, on rows padded to the right."""
    longest = max(e.n_tokens for e in batch)
    ids, labels, mask = (torch.full((len(batch), longest), fill) for fill in (0, -100, 0))
    for row, example in enumerate(batch):
        n_prompt, n = len(example.prompt_ids), example.n_tokens
        ids[row, :n] = torch.tensor([*example.prompt_ids, *example.completion_ids])
        labels[row, n_prompt:n] = torch.tensor(example.completion_ids)
        mask[row, :n] = 1
    return model(input_ids=ids, labels=labels, attention_mask=mask).loss


@torch.inference_mode()
def plain_logits(model: Any, ids: Iterable[int]) -> torch.Tensor:
    """Logits (n_tokens, n_vocabulary) of one sequence, asked the ordinary way."""
    return model(input_ids=torch.tensor([list(ids)])).logits[0]


@torch.inference_mode()
def plain_answer(model: Any, ids: Iterable[int], max_tokens: int) -> tuple[int, ...]:
    """The greedy answer by transformers' own generate, without the stop token."""
    asked = torch.tensor([list(ids)])
    made = model.generate(asked, attention_mask=torch.ones_like(asked), max_new_tokens=max_tokens, do_sample=False)[0, asked.shape[1] :].tolist()
    return tuple(itertools.takewhile(lambda i: i != STOP_ID, made))


def flat_logits(shared: SharedBase, sequences: list[tuple[int, ...]], adapter: Adapter | None = None) -> list[torch.Tensor]:
    """Logits (n_tokens, n_vocabulary) of several sequences in one pass, which all go through one adapter or through none."""
    lengths = [len(ids) for ids in sequences]
    adapters = ReadingAdapters([Piece(adapter, 0, sum(lengths))]) if adapter else None
    ids, positions = [i for each in sequences for i in each], [place for n in lengths for place in range(n)]
    with torch.inference_mode():
        return list(logits_of(shared.model, hidden_states(shared.model, ids, positions, SequenceAttention(lengths), adapters)).split(lengths))


def some_adapter(shared: SharedBase, seed: int, rank: int = 4) -> Adapter:
    """An adapter that changes answers; nobody had to train it."""
    adapter = Adapter(shared.sites, rank, 2.0 * rank, shared.device, trained=False)
    adapter.fill(initial_state(shared.model, rank, seed))
    adapter.flat.data += 0.1 * torch.randn(adapter.flat.shape, generator=torch.Generator().manual_seed(seed))
    return adapter


def spelled(ids: list[int]) -> str:
    """Stands in for a tokenizer."""
    return "".join(f"<{i}>" for i in ids)


Asked = tuple[Adapter | None, AnswerRequest | ScoreRequest]


def answers_of(shared: SharedBase, asked: list[Asked], arrives: list[int] | None = None, stop_ids: tuple[int, ...] = (STOP_ID,)) -> list[Answer]:
    """Answers from one running batch that each request joins at its step."""
    arrives = arrives or [0] * len(asked)
    batch, answers = RunningBatch(shared, stop_ids, spelled), dict[int, Answer]()
    for step in itertools.count():
        coming = [n for n, when in enumerate(arrives) if when == step]
        if coming:
            batch.admit([Ticket(*asked[n], functools.partial(answers.__setitem__, n)) for n in coming])
        if step >= max(arrives) and not batch.n_alive:
            return [answers[n] for n in range(len(asked))]
        batch.step()
    raise AssertionError


def bytes_of(folder: Path) -> bytes:
    """The weights of a saved adapter."""
    return (folder / "adapter_model.safetensors").read_bytes()
