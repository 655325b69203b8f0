"""Adapters and prompts in, greedy answers out: PEFT with one adapter at a time, all of them in one process on one base.

    python sequential_generate.py --base FOLDER --adapters A B C --prompts prompts.json --max-tokens 24 --batch 64 --threads 2

prompts.json is a list of prompts, each a list of ids. Every adapter is loaded on the same base, answers all the prompts
in left-padded batches of --batch rows through `generate`, and is unloaded. With --merge it is merged into a copy of the
base instead, which saves the adapter's own products at every step. The last line printed is a JSON object:
generated_tokens (up to and with the first end token of each answer), answer_seconds (making batches and answers),
adapter_seconds (loading and unloading adapters), total_seconds (since the script started, imports too) and answers
(for each adapter, for each prompt, the ids before the end token).
"""

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()

import torch  # noqa: E402
from peft import PeftModel  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402


def generate(model: Any, prompts: list[list[int]], batch: int, max_tokens: int, end_token: int) -> list[list[int]]:
    """The greedy answer of each prompt, up to and with its first end token."""
    answers: list[list[int]] = []
    for start in range(0, len(prompts), batch):
        rows = prompts[start : start + batch]
        width = max(len(row) for row in rows)
        output = model.generate(
            input_ids=torch.tensor([[end_token] * (width - len(row)) + row for row in rows]),
            attention_mask=torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]),
            do_sample=False,
            max_new_tokens=max_tokens,
            eos_token_id=end_token,
            pad_token_id=end_token,
        )
        for ids in output[:, width:].tolist():
            answers.append(ids[: ids.index(end_token) + 1] if end_token in ids else ids)
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--adapters", type=Path, nargs="+", required=True)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--max-tokens", type=int, default=24)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--end-token", type=int, default=2)
    parser.add_argument("--merge", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    prompts = json.loads(arguments.prompts.read_text())
    base = AutoModelForCausalLM.from_pretrained(arguments.base, dtype=getattr(torch, arguments.dtype))
    answers: list[list[list[int]]] = []
    adapter_seconds = answer_seconds = 0.0
    for folder in arguments.adapters:
        began = time.perf_counter()
        model = PeftModel.from_pretrained(copy.deepcopy(base) if arguments.merge else base, folder)
        student = model.merge_and_unload() if arguments.merge else model
        loaded = time.perf_counter()
        answers.append(generate(student, prompts, arguments.batch, arguments.max_tokens, arguments.end_token))
        answered = time.perf_counter()
        if not arguments.merge:
            base = model.unload()
        answer_seconds += answered - loaded
        adapter_seconds += time.perf_counter() - answered + loaded - began

    report = {
        "generated_tokens": sum(len(ids) for of_adapter in answers for ids in of_adapter),
        "answer_seconds": answer_seconds,
        "adapter_seconds": adapter_seconds,
        "total_seconds": time.perf_counter() - STARTED,
        "answers": [[[token for token in ids if token != arguments.end_token] for ids in of_adapter] for of_adapter in answers],
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
