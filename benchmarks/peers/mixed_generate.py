"""Adapters and prompts in, greedy answers out: PEFT's own batches of mixed adapters, all students in one process.

    python mixed_generate.py --base FOLDER --adapters A B C --prompts prompts.json --max-tokens 24 --batch 64 --threads 2

prompts.json is a list of prompts, each a list of ids. All adapters are loaded on one base; every pair of student and
prompt is a row, and batches of --batch rows go left-padded through `generate(..., adapter_names=[...])`. --order adapter
keeps a student's rows together, so that few adapters share a batch; --order length sorts the rows by the length of
their prompts, so that little is padded. The last line printed is a JSON object: generated_tokens (up to and with the
first end token of each answer), answer_seconds (making batches and answers), adapter_seconds (loading the adapters),
total_seconds (since the script started, imports too) and answers (for each adapter, for each prompt, the ids before the
end token).
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()

import torch  # noqa: E402
from peft import PeftModel  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402


def load_students(base: Path, adapters: list[Path], dtype: str) -> tuple[Any, list[str], float]:
    """One model that carries all the adapters, their names in it, and the seconds that loading them took."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype))
    names = [f"student_{number}" for number in range(len(adapters))]
    began = time.perf_counter()
    students = PeftModel.from_pretrained(model, adapters[0], adapter_name=names[0])
    for name, folder in zip(names[1:], adapters[1:], strict=True):
        students.load_adapter(folder, adapter_name=name)
    students.eval()
    return students, names, time.perf_counter() - began


def generate(model: Any, prompts: list[list[int]], names: list[str], max_tokens: int, end_token: int) -> list[list[int]]:
    """The greedy answer of each row of one batch by the adapter of that row, up to and with its first end token."""
    width = max(len(prompt) for prompt in prompts)
    output = model.generate(
        input_ids=torch.tensor([[end_token] * (width - len(prompt)) + prompt for prompt in prompts]),
        attention_mask=torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]),
        adapter_names=names,
        do_sample=False,
        max_new_tokens=max_tokens,
        eos_token_id=end_token,
        pad_token_id=end_token,
    )
    answers = output[:, width:].tolist()
    return [ids[: ids.index(end_token) + 1] if end_token in ids else ids for ids in answers]


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
    parser.add_argument("--order", choices=("adapter", "length"), default="adapter")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    prompts = json.loads(arguments.prompts.read_text())
    students, names, adapter_seconds = load_students(arguments.base, arguments.adapters, arguments.dtype)

    answer_started = time.perf_counter()
    pairs = [(student, prompt) for student in range(len(names)) for prompt in range(len(prompts))]
    if arguments.order == "length":
        pairs.sort(key=lambda pair: len(prompts[pair[1]]))
    answers: list[list[list[int]]] = [[[] for _ in prompts] for _ in names]
    for start in range(0, len(pairs), arguments.batch):
        rows = pairs[start : start + arguments.batch]
        batch_prompts, batch_names = [prompts[prompt] for _, prompt in rows], [names[student] for student, _ in rows]
        ids_of_rows = generate(students, batch_prompts, batch_names, arguments.max_tokens, arguments.end_token)
        for (student, prompt), ids in zip(rows, ids_of_rows, strict=True):
            answers[student][prompt] = ids
    answer_seconds = time.perf_counter() - answer_started

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
