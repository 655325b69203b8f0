"""Adapters and prompts in, greedy answers out: transformers' continuous batching over a paged cache, one PEFT adapter at a time.

    python continuous_generate.py --base FOLDER --adapters A B C --prompts prompts.json --max-tokens 24 --batch 64 --threads 2

prompts.json is a list of prompts, each a list of ids. All adapters are loaded on one base; each in turn is made the
active one and answers all the prompts through `generate_batch`, where a row that ends makes place for the next and
nothing is padded; at most --batch rows run at once. Left to itself `generate_batch` fills six tenths of the memory with
its cache, so the cache is cut to what the rows need. A cache is never kept from one adapter to the next: its blocks are
shared between prompts that begin alike, and a block is true for one adapter only. The last line printed is a JSON
object: generated_tokens (up to and with the first end token of each answer), answer_seconds (inside `generate_batch`),
adapter_seconds (loading the adapters), total_seconds (since the script started, imports too) and answers (for each
adapter, for each prompt, the ids before the end token).
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()

import torch  # noqa: E402
from peft import PeftModel  # noqa: E402
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig  # noqa: E402

PAGE_SIZE = 32


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


def generate(model: Any, prompts: list[list[int]], batch: int, max_tokens: int, end_token: int) -> list[list[int]]:
    """The greedy answer of each prompt by the active adapter, up to and with its end token."""
    longest = max(len(prompt) for prompt in prompts)
    outputs = model.generate_batch(
        inputs=prompts,
        generation_config=GenerationConfig(do_sample=False, max_new_tokens=max_tokens, eos_token_id=end_token, pad_token_id=end_token),
        continuous_batching_config=ContinuousBatchingConfig(
            page_size=PAGE_SIZE,
            num_blocks=batch * (math.ceil((longest + max_tokens) / PAGE_SIZE) + 1),
            max_batch_tokens=batch * longest,
            max_requests_per_batch=batch,
        ),
    )
    failed = [output.error for output in outputs.values() if output.error]
    if failed or len(outputs) != len(prompts):
        raise RuntimeError(f"{len(outputs) - len(failed)} of {len(prompts)} prompts were answered: {failed[:1]}")
    return [list(output.generated_tokens) for output in outputs.values()]  # they come in the order of the prompts


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
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    prompts = json.loads(arguments.prompts.read_text())
    students, names, adapter_seconds = load_students(arguments.base, arguments.adapters, arguments.dtype)

    answer_started = time.perf_counter()
    answers: list[list[list[int]]] = []
    for name in names:
        students.set_adapter(name)
        answers.append(generate(students, prompts, arguments.batch, arguments.max_tokens, arguments.end_token))
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
