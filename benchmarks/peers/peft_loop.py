"""One student file in, one LoRA adapter out: a plain, competent training loop on PEFT, without any trainer.

    python peft_loop.py --base FOLDER --student student.json --out ADAPTER_FOLDER --threads 2

student.json holds "seed", "recipe" and "epochs": the examples ({"prompt_ids", "completion_ids"}) of every epoch in the
order of training, so that consecutive groups of the recipe's batch_size are the optimiser steps. The batches are padded
to the right and the loss is the model's own: the mean over the completion ids of the batch. The base is held in --dtype;
the adapter stays float32, as PEFT makes it. The last line printed is a JSON object: tokens (ids run, padding left out),
steps, losses (one per step), train_seconds (the loop alone) and total_seconds (since the script started, imports too).
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()

import torch  # noqa: E402
from peft import LoraConfig, PeftModel, get_peft_model  # noqa: E402
from torch.nn.utils import clip_grad_norm_  # noqa: E402
from transformers import AutoModelForCausalLM, get_scheduler  # noqa: E402


def adapted_base(base: Path, dtype: str, recipe: dict[str, Any], seed: int, initial_adapter: Path | None) -> Any:
    """The frozen base under a trainable adapter: a given one, or a fresh one of the recipe's rank on all linear layers."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype))
    model.config.use_cache = False
    if initial_adapter is not None:
        return PeftModel.from_pretrained(model, initial_adapter, is_trainable=True)
    config = LoraConfig(r=recipe["lora_rank"], lora_alpha=recipe["lora_alpha"], target_modules="all-linear", lora_dropout=0.0, task_type="CAUSAL_LM")
    torch.manual_seed(seed)
    return get_peft_model(model, config)


def padded(examples: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """A batch as the model takes it, (rows, longest row): ids, mask and labels, padded to the right."""
    rows = [example["prompt_ids"] + example["completion_ids"] for example in examples]
    labels = [[-100] * len(example["prompt_ids"]) + example["completion_ids"] for example in examples]
    width = max(len(row) for row in rows)
    return {
        "input_ids": torch.tensor([row + [0] * (width - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
        "labels": torch.tensor([row + [-100] * (width - len(row)) for row in labels]),
    }


def train(model: Any, batches: list[list[dict[str, list[int]]]], recipe: dict[str, Any]) -> list[float]:
    """One optimiser step for every batch; returns the loss of each."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=recipe["learning_rate"], weight_decay=recipe["weight_decay"], fused=True)
    scheduler = get_scheduler(recipe["schedule"], optimizer, num_warmup_steps=0, num_training_steps=len(batches))
    losses = []
    model.train()
    for batch in batches:
        loss = model(**padded(batch)).loss
        loss.backward()
        clip_grad_norm_(parameters, recipe["gradient_clip"])
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("base", "student", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--initial-adapter", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    student = json.loads(arguments.student.read_text())
    recipe, epochs = student["recipe"], student["epochs"]
    size = recipe["batch_size"]
    batches = [epoch[start : start + size] for epoch in epochs for start in range(0, len(epoch), size)]
    model = adapted_base(arguments.base, arguments.dtype, recipe, student["seed"], arguments.initial_adapter)

    train_started = time.perf_counter()
    losses = train(model, batches, recipe)
    train_seconds = time.perf_counter() - train_started

    model.save_pretrained(arguments.out)
    tokens = sum(len(example["prompt_ids"]) + len(example["completion_ids"]) for epoch in epochs for example in epoch)
    total_seconds = time.perf_counter() - STARTED
    print(json.dumps({"tokens": tokens, "steps": len(losses), "losses": losses, "train_seconds": train_seconds, "total_seconds": total_seconds}))


if __name__ == "__main__":
    main()
