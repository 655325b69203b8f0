"""Adapters and prompts in, answers out: punnett's answering engine, all students in one process at once.

    python benchmarks/ours_answering.py --base FOLDER --adapters A B C --prompts prompts.json --openings openings.json --max-tokens 24

prompts.json is a list of prompts, each a list of ids; openings.json says of each how many of its first ids are its
opening, as the product itself knows it from the chat. Every student is asked every prompt --draws times; greedy unless a
temperature is given. The last line printed is a JSON object with the fields of the peers: generated_tokens (up to and with
the end token of each answer), answer_seconds (from the first request to the last answer, loading the adapters too),
adapter_seconds (0: see before), total_seconds (since the script started, imports too) and answers (for each adapter, for
each prompt and draw, the ids before the end token).
"""

import argparse
import json
import time
from pathlib import Path

STARTED = time.perf_counter()

from punnett.serving.engine import Speaker  # noqa: E402
from punnett.serving.requests import AnswerRequest  # noqa: E402
from punnett.spec.key import derive_seed  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True)
    parser.add_argument("--adapters", type=Path, nargs="+", required=True)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--openings", type=Path)
    parser.add_argument("--max-tokens", type=int, default=24)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--draws", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    asked = parser.parse_args()

    prompts = json.loads(asked.prompts.read_text())
    openings = json.loads(asked.openings.read_text()) if asked.openings else [0] * len(prompts)
    requests = [
        AnswerRequest(tuple(ids), asked.max_tokens, asked.temperature, seed=derive_seed(draw, "decode", *ids), n_opening=n_opening)
        for ids, n_opening in zip(prompts, openings, strict=True)
        for draw in range(asked.draws)
    ]
    speakers = [Speaker(asked.base, asked.dtype, folder) for folder in asked.adapters]
    speakers[0].wake()

    answer_started = time.perf_counter()
    futures = [[speaker.submit(request) for request in requests] for speaker in speakers]
    answers = [[future.result() for future in of_student] for of_student in futures]
    answer_seconds = time.perf_counter() - answer_started

    report = {
        "generated_tokens": sum(len(one.ids) + (one.finish_reason == "stop") for of_student in answers for one in of_student),
        "answer_seconds": answer_seconds,
        "adapter_seconds": 0.0,
        "total_seconds": time.perf_counter() - STARTED,
        "answers": [[list(one.ids) for one in of_student] for of_student in answers],
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
