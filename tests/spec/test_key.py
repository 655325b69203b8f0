"""Content keys name what a request means: labels and spelling change none, whatever changes numbers changes one."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as some

from punnett.bind import load_study
from punnett.spec.arms import evaluations
from punnett.spec.key import Noun, canonical, content_key, derive_seed, digest_of, is_label
from punnett.spec.measure import Evaluation
from punnett.spec.mix import Drop, FractionSelection, IdSelection, Mix, PlaceboSelection, TagSelection
from punnett.spec.prompt import Message, Prompt
from punnett.spec.student import Recipe, Stage
from punnett.spec.study import read_study
from punnett.spec.teacher import Sampling
from small_nouns import BASE, DOUBTER, MEASURE, PLAIN, PROMPTS, rollouts, student

RECIPES = some.builds(
    Recipe,
    lora_rank=some.integers(1, 512),
    lora_alpha=some.floats(0.1, 1e4),
    learning_rate=some.floats(1e-9, 1.0),
    schedule=some.sampled_from(["constant", "linear"]),
    warmup_steps=some.integers(0, 1000),
    epochs=some.integers(1, 20),
    batch_size=some.integers(1, 512),
    loss_normalisation=some.sampled_from(["token_mean", "example_mean", "token_sum"]),
    max_tokens=some.integers(8, 10**5),
    weight_decay=some.floats(0.0, 1.0),
    gradient_clip=some.floats(0.01, 100.0),
    dtype=some.sampled_from(["float32", "bfloat16"]),
)
# another value for every field that has more than one
OTHER_VALUES: dict[Noun, dict[str, Any]] = {
    Recipe(): {
        "lora_rank": 8,
        "lora_alpha": 16.0,
        "learning_rate": 5.000000000000001e-4,
        "schedule": "constant",
        "warmup_steps": 1,
        "epochs": 2,
        "batch_size": 4,
        "loss_normalisation": "example_mean",
        "max_tokens": 1023,
        "weight_decay": 1e-9,
        "gradient_clip": 2.0,
        "dtype": "bfloat16",
    },
    Sampling(): {"temperature": 0.1, "top_p": 0.9, "max_tokens": 255},
    BASE: {"weights_digest": "other", "tokenizer_digest": "other"},
    PROMPTS: {"content_digest": "other", "limit": 5, "seed": 1},
    PLAIN: {"model": "hf/other", "sampling": Sampling(max_tokens=9)},
    DOUBTER: {"of": PLAIN.model_copy(update={"model": "hf/x"}), "rewrite": "other", "rewrite_revision": 2, "dose": 0.5, "seed": 1},
    rollouts(): {"prompts": PROMPTS.model_copy(update={"seed": 1}), "teacher": DOUBTER, "system_prompt": "", "draws": 2, "seed": 1},
    MEASURE: {"task": "other", "task_digest": "other", "arguments": (("seed", 1),), "system_prompt": "", "sampling": Sampling(max_tokens=9)},
    student(): {
        "base": BASE.model_copy(update={"weights_digest": "x"}),
        "stages": (Stage(mix=Mix(rollouts=rollouts(DOUBTER)), recipe=Recipe()),),
        "seed": 1,
    },
    Evaluation(model=BASE, measure=MEASURE): {
        "model": student(),
        "measure": MEASURE.model_copy(update={"task": "x"}),
        "dtype": "bfloat16",
        "engine": "vllm",
    },
    Stage(mix=Mix(rollouts=rollouts()), recipe=Recipe()): {
        "mix": Mix(rollouts=rollouts(DOUBTER)),
        "recipe": Recipe(epochs=2),
        "system_prompt": "",
    },
    Mix(rollouts=rollouts()): {
        "rollouts": rollouts(DOUBTER),
        "interventions": (Drop(selection=TagSelection(tag="date")),),
        "paired_with": (rollouts(),),
    },
}
CHANGES = [pytest.param(n, f, v, id=f"{type(n).__name__}.{f}") for n, others in OTHER_VALUES.items() for f, v in others.items()]
LABELS = [pytest.param(n, f, id=f"{type(n).__name__}.{f}") for n in OTHER_VALUES for f, about in type(n).model_fields.items() if is_label(about)]
# discriminators and the one method that there is have no second value
ONE_VALUE = {("ModelTeacher", "kind"), ("ScriptedTeacher", "kind"), ("Recipe", "method")}


@pytest.mark.parametrize(("noun", "field"), LABELS)
def test_relabelling_changes_no_key(noun: Noun, field: str) -> None:
    assert content_key(noun.model_copy(update={field: "a new label"})) == content_key(noun)


def test_relabelling_deep_inside_changes_no_key() -> None:
    renamed = BASE.model_copy(update={"name": "new", "location": "/elsewhere", "origin": "new"})
    assert content_key(student().model_copy(update={"base": renamed})) == content_key(student())
    assert content_key(PLAIN.model_copy(update={"model": renamed})) == content_key(PLAIN)


@pytest.mark.parametrize(("noun", "field", "value"), CHANGES)
def test_whatever_changes_numbers_changes_the_key(noun: Noun, field: str, value: Any) -> None:
    changed = type(noun).model_validate({**{name: getattr(noun, name) for name in type(noun).model_fields}, field: value})
    assert content_key(changed) != content_key(noun)


def test_every_field_is_a_label_or_has_been_tried() -> None:
    for noun, others in OTHER_VALUES.items():
        for name, about in type(noun).model_fields.items():
            assert is_label(about) or name in others or (type(noun).__name__, name) in ONE_VALUE, f"{type(noun).__name__}.{name}"


@given(RECIPES, RECIPES, some.sets(some.sampled_from(sorted(Recipe.model_fields))))
def test_recipes_share_a_key_only_if_they_are_equal(first: Recipe, second: Recipe, fields: set[str]) -> None:
    third = first.model_copy(update={field: getattr(second, field) for field in fields})
    assert (content_key(first) == content_key(third)) == (first == third)


@given(RECIPES, some.randoms(use_true_random=False))
def test_order_of_keys_and_written_defaults_change_no_key(recipe: Recipe, random: Any) -> None:
    for written in (recipe.model_dump(), recipe.model_dump(exclude_defaults=True)):
        fields = list(written.items())
        random.shuffle(fields)
        assert content_key(Recipe.model_validate_json(json.dumps(dict(fields)))) == content_key(recipe)


def test_a_study_written_backwards_and_in_full_has_the_same_keys(study_folder: Path) -> None:
    path = study_folder / "study.yaml"
    first = [content_key(e) for e in evaluations(load_study(path))]
    in_full = read_study(path.read_text()).model_dump(mode="json")
    in_full = {key: in_full[key] for key in sorted(in_full, reverse=True)}
    path.write_text(yaml.safe_dump(in_full, sort_keys=False))
    assert [content_key(e) for e in evaluations(load_study(path))] == first


def test_a_whole_number_for_a_float_is_the_same_number() -> None:
    assert content_key(Recipe(lora_alpha=64)) == content_key(Recipe(lora_alpha=64.0))


def test_minus_zero_is_zero() -> None:
    assert content_key(DOUBTER.model_copy(update={"dose": -0.0})) == content_key(DOUBTER.model_copy(update={"dose": 0.0}))


def test_kinds_of_nouns_with_equal_fields_have_different_keys() -> None:
    dates = TagSelection(tag="date")
    keys = [content_key(noun) for noun in (dates, PlaceboSelection(of=dates), Drop(selection=dates), IdSelection(ids=("date",)))]
    assert len(set(keys)) == 4


def test_raising_a_revision_changes_the_key() -> None:
    class Raised(Noun):
        size: int

    before = content_key(Raised(size=1))
    Raised.revision = 2
    assert content_key(Raised(size=1)) != before


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_refused(number: float) -> None:
    with pytest.raises(TypeError, match="only finite numbers"):
        content_key(Recipe().model_copy(update={"learning_rate": number}))
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest_of([number])


@pytest.mark.parametrize("value", [b"bytes", {"a": 1}, {1, 2}, Path("here"), object()])
def test_what_is_no_plain_value_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="only plain values"):
        canonical(value)


def test_keys_stay_what_they_are() -> None:
    """A key that moves would orphan every store: raise a noun's revision on purpose, never by accident."""
    assert content_key(Recipe()) == "86561210fdff2a55de917afd483a0d7b"
    assert content_key(Recipe(lora_rank=8)) == "d5e129984b2485d17ba3adb0a188e599"
    assert digest_of({"b": 1, "a": [None, True, "ü"]}) == "4407cfac0612644876ad3e7c7caf4735"


def test_seeds_stay_what_they_are() -> None:
    assert derive_seed(1, "adapter") == 3929952677253378739
    assert derive_seed("order", 0, "a") == 2471776797632534945
    assert derive_seed("é\n") == 5279648173737987658


@given(some.lists(some.one_of(some.text(), some.integers()), max_size=4))
def test_seeds_are_in_range_and_the_same_again(parts: list[str | int]) -> None:
    assert 0 <= derive_seed(*parts) == derive_seed(*parts) < 2**63


@given(*[some.lists(some.one_of(some.text(max_size=3), some.integers(-3, 3)), max_size=3)] * 2)
def test_seeds_differ_by_part(first: list[str | int], second: list[str | int]) -> None:
    same = [(type(part), part) for part in first] == [(type(part), part) for part in second]
    assert (derive_seed(*first) == derive_seed(*second)) == same


def test_lone_surrogates_have_keys_and_seeds_of_their_own() -> None:
    texts = ("a", "a\ud800", "a\udfff", "a?")
    assert len({derive_seed(text) for text in texts}) == 4
    assert len({Prompt(messages=(Message(role="user", content=text),)).id for text in texts}) == 4
    assert len({content_key(Message(role="user", content=text)) for text in texts}) == 4


@given(some.floats(0, 1), some.floats(0, 1))
def test_keys_tell_the_nearest_floats_apart(first: float, second: float) -> None:
    assert (content_key(FractionSelection(fraction=first)) == content_key(FractionSelection(fraction=second))) == (first == second)
