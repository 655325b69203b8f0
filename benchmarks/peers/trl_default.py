"""One student file in, one LoRA adapter out: TRL's SFTTrainer as its documentation has it, defaults for all that the recipe leaves open.

    python trl_default.py --base FOLDER --student student.json --out ADAPTER_FOLDER --threads 2

student.json holds "seed", "recipe" and "epochs": the examples ({"prompt_ids", "completion_ids"}) of every epoch. The
first epoch's examples are the data set and TRL shuffles them anew for every epoch, so its batches are not those of the
other peers. TRL's defaults are kept: gradient checkpointing, bfloat16 autocast over a float32 base, its collator, its
preparation of the data, its checkpoint at the end. Beyond the recipe only report_to, use_cpu (bfloat16 asks for it
where there is no GPU) and logging_steps (else the loss of a step is not kept) are set. The last line printed is a JSON
object: tokens (ids run, padding left out), steps, losses (one per step), train_seconds (inside `trainer.train()`) and
total_seconds (since the script started, imports too).
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from peft import LoraConfig, PeftModel  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402
from trl import SFTConfig, SFTTrainer  # noqa: E402


def dataset_of(examples: list[dict[str, list[int]]]) -> Dataset:
    """Pre-tokenised rows as TRL takes them: `input_ids`, and `labels`, -100 where no loss falls."""
    return Dataset.from_list(
        [
            {
                "input_ids": example["prompt_ids"] + example["completion_ids"],
                "labels": [-100] * len(example["prompt_ids"]) + example["completion_ids"],
            }
            for example in examples
        ]
    )


def settings_of(recipe: dict[str, Any], seed: int, folder: Path) -> SFTConfig:
    """The recipe in TRL's words; everything else is SFTConfig's default."""
    return SFTConfig(
        output_dir=str(folder),
        seed=seed,
        per_device_train_batch_size=recipe["batch_size"],
        num_train_epochs=recipe["epochs"],
        learning_rate=recipe["learning_rate"],
        lr_scheduler_type=recipe["schedule"],
        weight_decay=recipe["weight_decay"],
        max_grad_norm=recipe["gradient_clip"],
        logging_steps=1,
        report_to="none",
        use_cpu=True,
    )


def trainer_of(base: Path, recipe: dict[str, Any], initial_adapter: Path | None, settings: SFTConfig, dataset: Dataset) -> SFTTrainer:
    """A trainer over the base's folder with a fresh adapter, or over a model that already carries a given one."""
    if initial_adapter is not None:
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        return SFTTrainer(model=PeftModel.from_pretrained(model, initial_adapter, is_trainable=True), args=settings, train_dataset=dataset)
    config = LoraConfig(r=recipe["lora_rank"], lora_alpha=recipe["lora_alpha"], target_modules="all-linear", lora_dropout=0.0, task_type="CAUSAL_LM")
    return SFTTrainer(model=str(base), args=settings, train_dataset=dataset, peft_config=config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("base", "student", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--initial-adapter", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    student = json.loads(arguments.student.read_text())
    recipe, examples = student["recipe"], student["epochs"][0]
    settings = settings_of(recipe, student["seed"], arguments.out)
    trainer = trainer_of(arguments.base, recipe, arguments.initial_adapter, settings, dataset_of(examples))

    train_started = time.perf_counter()
    trainer.train()
    train_seconds = time.perf_counter() - train_started

    trainer.save_model(str(arguments.out))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    tokens = recipe["epochs"] * sum(len(example["prompt_ids"]) + len(example["completion_ids"]) for example in examples)
    total_seconds = time.perf_counter() - STARTED
    print(json.dumps({"tokens": tokens, "steps": len(losses), "losses": losses, "train_seconds": train_seconds, "total_seconds": total_seconds}))


if __name__ == "__main__":
    main()
