"""One student file in, one LoRA adapter out: TRL's SFTTrainer tuned by hand for small students on a CPU.

    python trl_tuned.py --base FOLDER --student student.json --out ADAPTER_FOLDER --threads 2

student.json holds "seed", "recipe" and "epochs": the examples ({"prompt_ids", "completion_ids"}) of every epoch in the
order of training, so that consecutive groups of the recipe's batch_size are the optimiser steps. Exactly these batches
are trained in exactly this order, so with --dtype float32 the losses are an outside oracle: no shuffling, no gradient
checkpointing, no checkpoints, no preparation of the data, no truncation, no progress bar. `--dtype bfloat16` holds the
base in bfloat16 and trains under TRL's autocast. `--loss trl` is TRL's own loss, which on a CPU scores every position
of the padded batch against the vocabulary, twice; `--loss compact` is the same number from the completion ids alone.
The last line printed is a JSON object: tokens (ids run, padding left out), steps, losses (one per step), train_seconds
(inside `trainer.train()`) and total_seconds (since the script started, imports too).
"""

import argparse
import json
import time
from itertools import islice
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from peft import LoraConfig, PeftModel, get_peft_model  # noqa: E402
from torch.nn.functional import cross_entropy  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback  # noqa: E402
from trl import SFTConfig, SFTTrainer  # noqa: E402


class FixedOrderTrainer(SFTTrainer):
    """An SFTTrainer that takes its batches from a list of row numbers, and its loss as `loss` says."""

    def __init__(self, *positional: Any, batches: list[list[int]], loss: str, **named: Any) -> None:
        self.batches, self.loss = batches, loss
        super().__init__(*positional, **named)

    def get_train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_dataset, batch_sampler=self.batches, collate_fn=self.data_collator)

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        if self.loss == "trl":
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        language_model = model.get_base_model()
        decoded = language_model.get_decoder()(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
        targets = inputs["labels"][:, 1:]
        trained = targets != -100
        logits = language_model.get_output_embeddings()(decoded.last_hidden_state[:, :-1][trained])
        return cross_entropy(logits.float(), targets[trained])


def adapted_base(base: Path, dtype: str, recipe: dict[str, Any], seed: int, initial_adapter: Path | None) -> Any:
    """The frozen base under a trainable adapter: a given one, or a fresh one of the recipe's rank on all linear layers."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype))
    if initial_adapter is not None:
        return PeftModel.from_pretrained(model, initial_adapter, is_trainable=True)
    config = LoraConfig(r=recipe["lora_rank"], lora_alpha=recipe["lora_alpha"], target_modules="all-linear", lora_dropout=0.0, task_type="CAUSAL_LM")
    torch.manual_seed(seed)
    return get_peft_model(model, config)


def row_of(example: dict[str, list[int]]) -> dict[str, list[int]]:
    """A pre-tokenised row as TRL takes it: labels are -100 where no loss falls."""
    prompt, completion = example["prompt_ids"], example["completion_ids"]
    return {"input_ids": prompt + completion, "labels": [-100] * len(prompt) + completion}


def settings_of(recipe: dict[str, Any], folder: Path, dtype: str) -> SFTConfig:
    """The recipe in TRL's words, and everything off that costs time and changes no loss."""
    return SFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=recipe["batch_size"],
        num_train_epochs=1,  # the given epochs follow each other in one
        learning_rate=recipe["learning_rate"],
        lr_scheduler_type=recipe["schedule"],
        weight_decay=recipe["weight_decay"],
        max_grad_norm=recipe["gradient_clip"],
        bf16=dtype == "bfloat16",
        gradient_checkpointing=False,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        save_strategy="no",
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("base", "student", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--initial-adapter", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--loss", choices=("trl", "compact"), default="trl")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    student = json.loads(arguments.student.read_text())
    recipe, epochs = student["recipe"], student["epochs"]
    size = recipe["batch_size"]
    rows = [row_of(example) for epoch in epochs for example in epoch]
    numbers = iter(range(len(rows)))
    batches = [list(islice(numbers, min(size, len(epoch) - start))) for epoch in epochs for start in range(0, len(epoch), size)]
    trainer = FixedOrderTrainer(
        model=adapted_base(arguments.base, arguments.dtype, recipe, student["seed"], arguments.initial_adapter),
        args=settings_of(recipe, arguments.out, arguments.dtype),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(arguments.base),
        batches=batches,
        loss=arguments.loss,
    )
    trainer.remove_callback(PrinterCallback)

    train_started = time.perf_counter()
    trainer.train()
    train_seconds = time.perf_counter() - train_started

    trainer.model.save_pretrained(arguments.out)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    tokens = sum(len(row["input_ids"]) for row in rows)
    total_seconds = time.perf_counter() - STARTED
    print(json.dumps({"tokens": tokens, "steps": len(losses), "losses": losses, "train_seconds": train_seconds, "total_seconds": total_seconds}))


if __name__ == "__main__":
    main()
