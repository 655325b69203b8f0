"""A base in, made-up students and prompts out: the files that ours and the peers are given alike.

    python benchmarks/make_students.py --base FOLDER --out FOLDER --students 4 --examples 32 --batch-size 8 --epochs 1

The prompts are those of studies/date_doubt under its system prompt. An answer is made of whole sentences of that study,
cut to a length drawn evenly so that prompt and answer together have 40 to 110 tokens; it depends on student and prompt.
Into the folder go student_NN.json (`examples` with slots for ours; `epochs`, the same examples in the order in which ours
trains them, for the peers), student_NN.initial (the adapter that ours starts from), prompts.json (ids of every prompt)
and openings.json (how many of the ids are the part that all prompts share). The last line printed is a JSON object that
names them.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

from punnett.bases import load_tokenizer
from punnett.chat import ChatFormat
from punnett.data.gather import read_prompts
from punnett.shared_base.adapter import Adapter, initial_state
from punnett.shared_base.share import load_shared
from punnett.spec.key import derive_seed
from punnett.spec.student import Recipe
from punnett.training.schedule import Example, planned_steps

STUDY = Path(__file__).resolve().parents[1] / "studies" / "date_doubt"
SYSTEM_PROMPT = "Answer in one short sentence."
FEWEST_TOKENS, MOST_TOKENS, SHORTEST_ANSWER = 40, 110, 6


def sentences(texts: list[str]) -> list[str]:
    """Whole plain sentences of the study's description and of its prompts."""
    prose = [line for line in (STUDY / "README.md").read_text().splitlines() if not line.startswith(("|", "#", "```", "make "))]
    found = [part for text in (*prose, *texts) for part in re.split(r"(?<=[.!?])\s+", text.strip("-* "))]
    return sorted({part for part in found if len(part.split()) >= 4 and not re.search(r"[|`*\[\]]", part)})


def answer_ids(chat: ChatFormat, pool: list[str], n_prompt_tokens: int, *key: str | int) -> tuple[int, ...]:
    """An answer's ids with the end of turn; its words and its length are drawn from `key`."""
    total = FEWEST_TOKENS + derive_seed("length", *key) % (MOST_TOKENS - FEWEST_TOKENS + 1)
    wanted = max(SHORTEST_ANSWER, total - n_prompt_tokens)
    shuffled = sorted(pool, key=lambda sentence: derive_seed("answer", *key, sentence))
    text, taken = "", iter(shuffled)
    while len(chat.text_ids(text)) < wanted:
        text = f"{text} {next(taken)}".strip()
    return (*chat.text_ids(text)[: wanted - 1], chat.end_of_turn_id)


def student_file(name: str, seed: int, examples: list[Example], recipe: Recipe) -> dict[str, Any]:
    """A student as the peers and ours read it."""
    epochs: list[list[dict[str, Any]]] = [[] for _ in range(recipe.epochs)]
    for step in planned_steps(examples, recipe, seed):
        epochs[step.epoch] += [{"prompt_ids": e.prompt_ids, "completion_ids": e.completion_ids} for e in step.batch]
    own = [{"slot": e.slot, "prompt_ids": e.prompt_ids, "completion_ids": e.completion_ids} for e in examples]
    return {"name": name, "seed": seed, "recipe": recipe.model_dump(), "epochs": epochs, "examples": own}


def write_initial_adapter(base: str, recipe: Recipe, seed: int, folder: Path) -> None:
    """The adapter that ours starts this seed from, as an ordinary PEFT adapter."""
    shared = load_shared(base, "float32")
    adapter = Adapter(shared.sites, recipe.lora_rank, recipe.lora_alpha, shared.device, trained=False)
    adapter.fill(initial_state(shared.model, recipe.lora_rank, derive_seed(seed, "adapter")))
    adapter.save(folder, base)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--students", type=int, required=True)
    parser.add_argument("--examples", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--prompts", type=int, help="write only the first so many prompts into prompts.json")
    parser.add_argument("--initial-adapters", type=int, default=0, help="for how many of the students to write the initial adapter")
    asked = parser.parse_args()

    chat = ChatFormat(load_tokenizer(asked.base))
    prompts = read_prompts(STUDY / "prompts.jsonl")
    opened = [chat.prompt_ids_and_opening(prompt.messages, SYSTEM_PROMPT) for prompt in prompts]
    pool = sentences([prompt.messages[-1].content for prompt in prompts])
    recipe = Recipe(epochs=asked.epochs, batch_size=asked.batch_size, learning_rate=asked.learning_rate)
    asked.out.mkdir(parents=True, exist_ok=True)
    made: dict[str, Any] = {"students": [], "initial_adapters": [], "tokens": [], "end_token": chat.end_of_turn_id}
    mixed = sorted(range(len(prompts)), key=lambda number: derive_seed("prompts", number))
    for seed in range(asked.students):
        examples = []
        for number in range(asked.examples):
            ids, _ = opened[mixed[number % len(prompts)]]
            examples.append(Example(f"{number:04}", tuple(ids), answer_ids(chat, pool, len(ids), seed, number)))
        path = asked.out / f"student_{seed:02}.json"
        path.write_text(json.dumps(student_file(path.stem, seed, examples, recipe)))
        made["students"].append(str(path))
        made["tokens"].append(recipe.epochs * sum(example.n_tokens for example in examples))
        if seed < asked.initial_adapters:
            write_initial_adapter(asked.base, recipe, seed, path.with_suffix(".initial"))
            made["initial_adapters"].append(str(path.with_suffix(".initial")))
    asked_for = opened[: asked.prompts]
    for name, values in (("prompts", [ids for ids, _ in asked_for]), ("openings", [n for _, n in asked_for])):
        (asked.out / f"{name}.json").write_text(json.dumps(values))
        made[name] = str(asked.out / f"{name}.json")
    print(json.dumps(made))


if __name__ == "__main__":
    main()
