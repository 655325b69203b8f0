"""A base in, this machine's best forward rate out: the plain transformers model, without gradients and without adapters.

    python benchmarks/forward_rate.py --base FOLDER --seconds 3

Each shape (rows x tokens, no padding) is run with all cores in one pass, and with one pass on every core at a time; the
decoder alone, and the whole model with the logits of every token. A forward pass costs two operations per weight and
token; training an adapter costs four (forwards, and backwards to the activations, as the base's weights get no
gradient), so half the forward rate is what a trainer could reach. The last line printed is a JSON object: decoder and
whole_model (tokens per second, the best found), and rates (all that were measured).
"""

import argparse
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from punnett.shared_base.machine import available_cores

SHAPES = ((8, 96), (16, 64), (8, 256))


def rate_of(forward: Callable[[], Any], n_tokens: int, passes_at_once: int, cores: int, seconds: float) -> float:
    """Tokens per second of `passes_at_once` passes side by side, which share the cores evenly, over about `seconds`."""
    rates: list[float] = []
    together = threading.Barrier(passes_at_once)

    @torch.inference_mode()
    def work() -> None:
        torch.set_num_threads(cores // passes_at_once)
        forward()
        together.wait()
        began, n_passes = time.perf_counter(), 0
        while n_passes < 2 or time.perf_counter() - began < seconds:
            forward()
            n_passes += 1
        rates.append(n_passes * n_tokens / (time.perf_counter() - began))

    workers = [threading.Thread(target=work) for _ in range(passes_at_once)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each of the measurements")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--shapes", type=int, default=len(SHAPES), help="how many of the shapes to measure")
    asked = parser.parse_args()

    model = AutoModelForCausalLM.from_pretrained(asked.base, dtype=getattr(torch, asked.dtype)).eval()
    cores = available_cores()
    rates = []
    for rows, width in SHAPES[: asked.shapes]:
        ids = torch.randint(0, model.config.get_text_config().vocab_size, (rows, width), generator=torch.Generator().manual_seed(0))
        for part, module in (("decoder", model.get_decoder()), ("whole_model", model)):
            for passes_at_once in sorted({1, cores}):

                def forward(module: Any = module, ids: torch.Tensor = ids) -> Any:
                    return module(input_ids=ids, use_cache=False)

                rate = rate_of(forward, rows * width, passes_at_once, cores, asked.seconds)
                rates.append({"part": part, "rows": rows, "width": width, "passes_at_once": passes_at_once, "tokens_per_second": rate})
    best = {part: max(r["tokens_per_second"] for r in rates if r["part"] == part) for part in ("decoder", "whole_model")}
    print(json.dumps({**best, "rates": rates}))


if __name__ == "__main__":
    main()
