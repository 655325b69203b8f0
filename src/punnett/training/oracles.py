"""A training job in, what other trainers make of it out: plain PEFT with AdamW, and TRL where it is installed.

Neither shares a line with the concurrent trainer: they go through transformers' own forward and loss, on padded rows.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from punnett.shared_base.adapter import attach_adapter, trained_state
from punnett.spec.key import derive_seed
from punnett.training.concurrent import TrainingJob
from punnett.training.schedule import Example, planned_steps


@dataclass(frozen=True)
class OracleRun:
    """Losses by optimiser step, and the trained weights under PEFT's names."""

    losses: list[float]
    state: dict[str, torch.Tensor]


def padded(batch: list[Example]) -> dict[str, torch.Tensor]:
    """Rows padded to the right, with labels on the completions: (n_rows, longest) each."""
    longest = max(example.n_tokens for example in batch)
    ids, labels, mask = (torch.full((len(batch), longest), fill) for fill in (0, -100, 0))
    for row, example in enumerate(batch):
        n_prompt = len(example.prompt_ids)
        ids[row, : example.n_tokens] = torch.tensor([*example.prompt_ids, *example.completion_ids])
        labels[row, n_prompt : example.n_tokens] = torch.tensor(example.completion_ids)
        mask[row, : example.n_tokens] = 1
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def peft_run(model: Any, job: TrainingJob) -> OracleRun:
    """One student by PEFT, torch's AdamW and transformers' own loss. For the token mean, which is that loss."""
    recipe = job.recipe
    peft_model = attach_adapter(model, recipe.lora_rank, recipe.lora_alpha, derive_seed(job.seed, "adapter"))
    try:
        parameters = [p for p in peft_model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
        losses = []
        for planned in planned_steps(job.examples, recipe, job.seed):
            optimizer.param_groups[0]["lr"] = planned.learning_rate
            rows = {name: tensor.to(model.device) for name, tensor in padded(planned.batch).items()}
            loss = peft_model(**rows, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, recipe.gradient_clip)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return OracleRun(losses, trained_state(peft_model))
    finally:
        peft_model.unload()


def has_trl() -> bool:
    """Whether TRL and what it reads its rows with are installed (`pip install 'punnett[trl]'`)."""
    return all(importlib.util.find_spec(name) is not None for name in ("trl", "datasets"))


def trl_run(model: Any, job: TrainingJob, folder: Path) -> OracleRun:
    """One student by TRL's SFTTrainer, fed the same ids, labels and order; `folder` takes what it insists on writing.

    It is told what the recipe says and to leave alone what would change the numbers: checkpointing, shuffling, bf16.
    """
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    class InOrder(SFTTrainer):  # type: ignore[misc]
        def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
            return SequentialSampler(train_dataset or self.train_dataset)

    recipe = job.recipe
    rows = [e for planned in planned_steps(job.examples, recipe, job.seed) for e in planned.batch]
    columns = {
        "input_ids": [[*e.prompt_ids, *e.completion_ids] for e in rows],
        "labels": [[-100] * len(e.prompt_ids) + list(e.completion_ids) for e in rows],
    }
    peft_model = attach_adapter(model, recipe.lora_rank, recipe.lora_alpha, derive_seed(job.seed, "adapter"))
    try:
        settings = SFTConfig(
            output_dir=str(folder),
            per_device_train_batch_size=recipe.batch_size,
            num_train_epochs=1,  # the rows are all the epochs, one after another
            learning_rate=recipe.learning_rate,
            lr_scheduler_type=recipe.schedule,
            warmup_steps=recipe.warmup_steps,
            weight_decay=recipe.weight_decay,
            max_grad_norm=recipe.gradient_clip,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            activation_checkpointing=False,
            bf16=False,
            use_cpu=model.device.type == "cpu",
            disable_tqdm=True,
            max_length=None,
        )
        trainer = InOrder(model=peft_model, args=settings, train_dataset=Dataset.from_dict(columns), processing_class=_tokenizer_of(model))
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return OracleRun([entry["loss"] for entry in trainer.state.log_history if "loss" in entry], trained_state(peft_model))
    finally:
        peft_model.unload()


def _tokenizer_of(model: Any) -> Any:
    from punnett.bases import load_tokenizer

    tokenizer = load_tokenizer(model.config._name_or_path)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
