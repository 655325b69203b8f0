"""A base in, proof out that training many students at once changes none of them: deviations measured at full size.

The same checks run in the test suite on small shapes.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from punnett.bases import weights_fingerprint
from punnett.shared_base.adapter import Adapter
from punnett.shared_base.machine import available_cores
from punnett.shared_base.share import SharedBase, load_shared
from punnett.spec.student import Recipe
from punnett.training.concurrent import Failed, Finished, Stepped, Together, TrainingJob, train_together
from punnett.training.oracles import OracleRun, has_trl, peft_run, trl_run
from punnett.training.schedule import Example

# Deviations that rounding explains. Losses: float32's own over a mean of some hundred tokens. Weights: AdamW divides
# by a gradient's size, so a few weights whose gradient is nearly nothing move by up to the learning rate either way.
LOSS_LIMIT, WEIGHT_LIMIT, LOGIT_LIMIT = 1e-5, 1e-6, 1e-3
STEPS, BATCH_SIZE, RATE = 4, 4, 1e-3


@dataclass(frozen=True)
class Check:
    """One thing that was compared: what was found, what is allowed (None where it is only told), and whether it holds."""

    name: str
    found: str
    allowed: str | None
    holds: bool


@dataclass(frozen=True)
class Verification:
    """All that was compared."""

    checks: tuple[Check, ...]

    @property
    def holds(self) -> bool:
        """Whether every check holds."""
        return all(check.holds for check in self.checks)


@dataclass(frozen=True)
class Trained:
    """What training made of jobs: by name the losses of every step, the adapters, and what broke."""

    losses: dict[str, list[float]]
    adapters: dict[str, Adapter]
    failed: dict[str, Exception]


def train_all(shared: SharedBase, jobs: list[TrainingJob], together: Together) -> Trained:
    """Train jobs and keep everything in memory."""
    trained = Trained({job.name: [] for job in jobs}, {}, {})
    for event in train_together(shared, jobs, together):
        match event:
            case Stepped(name=name, step=step):
                trained.losses[name].append(step.loss)
            case Finished(name=name, adapter=adapter):
                trained.adapters[name] = adapter
            case Failed(name=name, error=error):
                trained.failed[name] = error
    return trained


def verify(location: str, n_students: int, say: Callable[[str], Any], work_folder: Path | None = None) -> Verification:
    """Run every check on a base's folder in float32, telling each as it is made."""
    checks = []
    with tempfile.TemporaryDirectory(dir=work_folder) as folder:
        for check in _checks(load_shared(location, "float32"), n_students, Path(folder), say):
            checks.append(check)
            allowed = f"  (allowed {check.allowed})" if check.allowed else ""
            say(f"{'holds ' if check.holds else 'BROKEN'}  {check.name}: {check.found}{allowed}")
    return Verification(tuple(checks))


def _checks(shared: SharedBase, n_students: int, folder: Path, say: Callable[[str], Any]) -> Iterator[Check]:
    cores, jobs = available_cores(), made_up_jobs(shared, n_students)
    before = weights_fingerprint(shared.model)
    say(f"training {n_students} made-up students at once, {STEPS} steps each of {BATCH_SIZE} examples ...")
    everyone = train_all(shared, jobs, Together(cores, cores, n_students))
    if everyone.failed:
        yield Check("every student trains", f"{len(everyone.failed)} failed: {next(iter(everyone.failed.values()))}", None, False)
        return
    for job in (jobs[0], jobs[-1]):
        alone = train_all(shared, [job], Together(1, 1, 1))
        yield _bitwise(f"{job.name} alone (one worker, no neighbours)", job.name, everyone, alone)
    backwards = train_all(shared, jobs[::-1][: max(2, n_students // 2)], Together(max(1, cores - 1), cores, 3, 256))
    yield _bitwise(f"{jobs[-1].name} in another slot, other neighbours, other passes", jobs[-1].name, everyone, backwards)
    for job in jobs[:2]:
        yield from _against("plain PEFT and AdamW", job, everyone, peft_run(shared.model, job))
    if has_trl():
        yield from _against("TRL's SFTTrainer", jobs[0], everyone, trl_run(shared.model, jobs[0], folder / "trl"))
    else:
        yield Check("TRL's SFTTrainer", "not installed; pip install 'punnett[trl]' adds it as an oracle", None, True)
    yield _reload(shared, jobs[0], everyone, folder / "adapter")
    yield Check("the base's weights", "the same hash before and after", None, weights_fingerprint(shared.model) == before)


def made_up_jobs(shared: SharedBase, n: int) -> list[TrainingJob]:
    """Students of different data, seeds, ranks and lengths; the ids are random words of the base's vocabulary."""
    size = shared.model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)

    def draw(low: int, high: int) -> tuple[int, ...]:
        length = int(torch.randint(low, high, (), generator=generator))
        return tuple(torch.randint(min(10, size // 2), size, (length,), generator=generator).tolist())

    jobs = []
    for k in range(n):
        steps = STEPS - 2 if k % 4 == 3 else STEPS  # some end before the others
        examples = [Example(f"slot-{i}", draw(20, 60), draw(5, 40)) for i in range(steps * BATCH_SIZE)]
        recipe = Recipe(lora_rank=8 if k % 3 == 2 else 16, learning_rate=RATE, epochs=1, batch_size=BATCH_SIZE)
        jobs.append(TrainingJob(f"student {k}", examples, recipe, seed=k % 3))
    return jobs


def _bitwise(name: str, student: str, first: Trained, second: Trained) -> Check:
    difference = (first.adapters[student].flat - second.adapters[student].flat).abs().max().item()
    same = first.losses[student] == second.losses[student] and difference == 0.0
    # on other devices matrix kernels may round by the shape of the whole batch; there the deviation is only told
    exact = first.adapters[student].flat.device.type == "cpu"
    found = "the same to the bit" if same else f"weights differ by up to {difference:.1e}"
    return Check(name, found, "nothing" if exact else None, same or not exact)


def _against(name: str, job: TrainingJob, ours: Trained, oracle: OracleRun) -> Iterator[Check]:
    losses = max(abs(a - b) for a, b in zip(ours.losses[job.name], oracle.losses, strict=True))
    yield Check(f"{name}, {job.name}: losses", f"differ by up to {losses:.1e}", f"{LOSS_LIMIT:.0e}", losses <= LOSS_LIMIT)
    state = ours.adapters[job.name].state()
    apart = torch.cat([(state[n] - oracle.state[n].cpu()).abs().flatten() for n in state])
    moved = STEPS * RATE
    found = f"differ by up to {apart.max().item():.1e}, {apart.mean().item():.1e} on average, after moving by up to about {moved:.0e}"
    yield Check(f"{name}, {job.name}: weights", found, f"{WEIGHT_LIMIT:.0e} on average", apart.mean().item() <= WEIGHT_LIMIT)


def _reload(shared: SharedBase, job: TrainingJob, trained: Trained, folder: Path) -> Check:
    """Load the saved adapter with PEFT, and compare its logits with those of a flat pass."""
    from peft import PeftModel

    from punnett.shared_base.attention import SequenceAttention
    from punnett.shared_base.linear import Piece, ReadingAdapters
    from punnett.shared_base.passes import hidden_states, logits_of

    adapter = trained.adapters[job.name]
    adapter.save(folder, "base")
    ids = [*job.examples[0].prompt_ids, *job.examples[0].completion_ids]
    with torch.inference_mode():
        adapters = ReadingAdapters([Piece(adapter, 0, len(ids))])
        ours = logits_of(shared.model, hidden_states(shared.model, ids, list(range(len(ids))), SequenceAttention([len(ids)]), adapters))
        peft_model = PeftModel.from_pretrained(shared.model, folder).eval()
        theirs = peft_model(input_ids=torch.tensor([ids], device=shared.device)).logits[0].float()
        peft_model.unload()
    apart = (ours - theirs).abs().max().item()
    return Check("PeftModel.from_pretrained loads the adapter: logits", f"differ by up to {apart:.1e}", f"{LOGIT_LIMIT:.0e}", apart <= LOGIT_LIMIT)
