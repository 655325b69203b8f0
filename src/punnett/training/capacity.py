"""A base on this machine in, how many students should share a pass out: measured once, in seconds, and remembered."""

import threading
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch

from punnett.shared_base.adapter import Adapter
from punnett.shared_base.machine import available_cores, free_bytes, machine_key, remember, remembered
from punnett.shared_base.share import SharedBase, load_shared
from punnett.training.concurrent import Together, TrainingJob
from punnett.training.loss import BatchPiece, add_gradients
from punnett.training.schedule import Example

# Sizes of a pass that are tried, in tokens; the smallest that is as fast as the best within NEARLY is taken.
PASSES = {"cpu": (128, 384, 1024), "cuda": (1024, 4096, 16384)}
NEARLY, PASSES_TIMED = 0.95, 2
# A typical short chat of 64 tokens, half of them trained.
PROMPT_TOKENS, COMPLETION_TOKENS = 32, 32
MEMORY_SHARE = 0.6
# What a pass needs at its peak, over what it keeps for the way back.
PEAK_OVER_KEPT = 1.5
STUDENTS_AT_MOST, SMALLEST_PIECE = 64, 256


@dataclass(frozen=True)
class TrainingSpeed:
    """What was measured: tokens per second of all workers together by tokens of a pass, and bytes kept per token."""

    tokens_per_second: dict[int, float]
    bytes_per_token: float
    workers: int

    @property
    def best_pass(self) -> int:
        """Tokens that a pass should hold."""
        best = max(self.tokens_per_second.values())
        return min(size for size, speed in self.tokens_per_second.items() if speed >= NEARLY * best)

    @property
    def best_speed(self) -> float:
        """Tokens per second at that size."""
        return self.tokens_per_second[self.best_pass]


def training_speed(location: str, dtype: str, rank: int) -> TrainingSpeed:
    """What this machine does with a base, measured now if it has not been; the base is loaded only then."""
    key = machine_key(location, dtype, rank=rank, measured="training")
    found = remembered(key)
    if found is None:
        found = asdict(measure(load_shared(location, dtype), rank))
        remember(key, found)
    speeds = {int(size): speed for size, speed in found["tokens_per_second"].items()}
    return TrainingSpeed(speeds, found["bytes_per_token"], found["workers"])


def measure(shared: SharedBase, rank: int) -> TrainingSpeed:
    """Time passes forwards and backwards of made-up chats, on every worker at once."""
    kind = shared.device.type if shared.device.type in PASSES else "cpu"
    workers = available_cores() if kind == "cpu" else 1
    sizes = PASSES[kind]
    speeds = {size: workers * size / _timed(shared, rank, size, workers) for size in sizes}
    return TrainingSpeed(speeds, _bytes_kept(shared, rank, sizes[0]) / sizes[0], workers)


def _timed(shared: SharedBase, rank: int, n_tokens: int, workers: int) -> float:
    """Seconds for one pass of `n_tokens` on each of the workers: the best of some, since another process may have been at work."""
    together = threading.Barrier(workers)
    seconds: list[float] = []

    def work(piece: BatchPiece) -> None:
        torch.set_num_threads(1)
        add_gradients(shared, [piece])  # a thread's first pass pays for memory that later ones find warm
        taken = []
        for _ in range(PASSES_TIMED):
            together.wait()
            started = time.monotonic()
            add_gradients(shared, [piece])
            together.wait()
            taken.append(time.monotonic() - started)
        seconds.append(min(taken))

    threads = [threading.Thread(target=work, args=(_made_up(shared, rank, n_tokens),)) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return max(seconds)


def _made_up(shared: SharedBase, rank: int, n_tokens: int) -> BatchPiece:
    adapter = Adapter(shared.sites, rank, float(rank), shared.device, trained=True)
    n_examples = max(1, n_tokens // (PROMPT_TOKENS + COMPLETION_TOKENS))
    size = shared.model.config.get_text_config().vocab_size
    ids = tuple(range(min(10, size - 1), min(10 + PROMPT_TOKENS, size)))
    examples = [Example(str(n), ids, ids[:COMPLETION_TOKENS]) for n in range(n_examples)]
    return BatchPiece(adapter, examples, [1.0 / n_examples] * n_examples)


def _bytes_kept(shared: SharedBase, rank: int, n_tokens: int) -> int:
    """What one pass keeps for the way back, without the base's own weights."""
    own = {parameter.untyped_storage().data_ptr() for parameter in shared.model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        add_gradients(shared, [_made_up(shared, rank, n_tokens)])
    return sum(kept.values())


def choose(shared: SharedBase, jobs: list[TrainingJob]) -> Together:
    """How these students share this machine. Memory may lower it; results do not depend on it."""
    rank = max(job.recipe.lora_rank for job in jobs)
    location = shared.model.config._name_or_path
    speed = training_speed(location, str(shared.model.dtype).removeprefix("torch."), rank)
    step_tokens = max(1.0, sum(_step_tokens(job) for job in jobs) / len(jobs))
    return fit(speed, step_tokens, adapter_bytes(shared.sites, rank), free_bytes(shared.device))


def fit(speed: TrainingSpeed, step_tokens: float, bytes_per_student: int, memory_bytes: int) -> Together:
    """The widest sharing that memory allows, up to what speed asks for: smaller passes first, then fewer workers, then cut batches.

    `step_tokens`: tokens of one student's optimiser step; `bytes_per_student`: its weights, gradients and moments.
    """
    room = MEMORY_SHARE * memory_bytes
    workers, size, piece = speed.workers, speed.best_pass, Together.tokens_per_piece

    def left_for_students() -> float:
        return room - workers * max(size, min(step_tokens, piece)) * speed.bytes_per_token * PEAK_OVER_KEPT

    def is_tight() -> bool:
        return left_for_students() < workers * bytes_per_student

    while size > step_tokens and is_tight():
        size //= 2
    while workers > 1 and is_tight():
        workers -= 1
    while piece > SMALLEST_PIECE and is_tight():
        piece, size = piece // 2, min(size, piece // 2)
    wanted = workers * max(1, round(size / step_tokens))
    possible = int(max(1, left_for_students() // bytes_per_student))
    return Together(workers, available_cores(), max(1, min(wanted, possible, STUDENTS_AT_MOST)), max(size, 1), piece)


def adapter_bytes(sites: list[Any], rank: int) -> int:
    """Weights, gradients and two moments of one student, in float32."""
    return 4 * 4 * sum(rank * (site.n_in + site.n_out) for site in sites)


def _step_tokens(job: TrainingJob) -> float:
    return job.recipe.batch_size * sum(e.n_tokens for e in job.examples) / max(1, len(job.examples))
