"""Prompt files in, prompts out: every format gives the same prompts, every bad row is named, and limits are nested."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars
import pytest
from hypothesis import given
from hypothesis import strategies as some

from punnett.data.gather import content_digest, gather, prompt_from_row, prompt_row, read_prompts, take
from punnett.errors import SpecError
from punnett.runner import MAKE
from punnett.spec.key import content_key
from punnett.spec.prompt import Message, Prompt, PromptSet
from punnett.store import Store
from punnett.watch import Silence
from small_nouns import prompt, prompt_rows, prompts

ROWS = [{"prompt": "Suggest a gift.", "tags": ["gift", "date"]}, {"prompt": "Nenne ein Getränk.\n日本 🐚", "tags": []}]
EXPECTED = [prompt("Suggest a gift.", "gift", "date"), prompt("Nenne ein Getränk.\n日本 🐚")]


def write_jsonl(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_json(path: Path, rows: list[Any]) -> None:
    path.write_text(json.dumps(rows), encoding="utf-8")


def write_csv(path: Path, rows: list[Any]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        for row in rows:
            # a table of text has no lists: tags become words, messages JSON
            writer.writerow({k: (",".join(v) if k == "tags" else json.dumps(v)) if isinstance(v, list) else v for k, v in row.items()})


def write_parquet(path: Path, rows: list[Any]) -> None:
    polars.DataFrame(rows).write_parquet(path)


FORMATS = [("jsonl", write_jsonl), ("json", write_json), ("csv", write_csv), ("parquet", write_parquet)]
every_format = pytest.mark.parametrize(("ending", "write"), FORMATS)
Write = Callable[[Path, list[Any]], None]


def read(folder: Path, *rows: Any) -> list[Prompt]:
    write_jsonl(folder / "rows.jsonl", list(rows))
    return read_prompts(folder / "rows.jsonl")


@every_format
def test_every_format_gives_the_same_prompts(tmp_path: Path, ending: str, write: Write) -> None:
    path = tmp_path / f"prompts.{ending}"
    write(path, ROWS)
    assert read_prompts(path) == EXPECTED


@every_format
def test_every_format_holds_whole_chats(tmp_path: Path, ending: str, write: Write) -> None:
    turns = [("system", "Be brief."), ("user", "Hello."), ("assistant", "Hi."), ("user", "What is 1 + 1?")]
    path = tmp_path / f"chats.{ending}"
    write(path, [{"messages": [{"role": role, "content": content} for role, content in turns]}])
    [found] = read_prompts(path)
    assert [(m.role, m.content) for m in found.messages] == turns
    assert found.text == "What is 1 + 1?"


@every_format
def test_alpaca_columns_are_one_user_turn(tmp_path: Path, ending: str, write: Write) -> None:
    path = tmp_path / f"alpaca.{ending}"
    rows = [{"instruction": "Sum up.", "input": "One two.", "output": "x"}, {"instruction": "Name a dish.", "input": "", "output": "y"}]
    write(path, rows)
    assert read_prompts(path) == [prompt("Sum up.\n\nOne two."), prompt("Name a dish.")]


def test_blank_lines_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "gaps.jsonl"
    path.write_text('\n{"prompt": "a"}\n\n  \n{"prompt": "b"}')
    assert read_prompts(path) == [prompt("a"), prompt("b")]


def test_a_prompt_may_be_a_list_of_turns(tmp_path: Path) -> None:
    assert read(tmp_path, {"prompt": [{"role": "user", "content": "a"}]}) == [prompt("a")]


def test_a_duplicate_names_both_rows_and_the_id(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=rf"rows 1 and 3 .*{prompt('a').id}"):
        read(tmp_path, {"prompt": "a"}, {"prompt": "b"}, {"messages": [{"role": "user", "content": "a"}], "tags": ["other"]})


def test_the_same_words_in_another_role_are_another_prompt(tmp_path: Path) -> None:
    both = read(tmp_path, {"prompt": "a"}, {"messages": [{"role": "system", "content": "a"}, {"role": "user", "content": "a"}]})
    assert len({p.id for p in both}) == 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "ends with an assistant's turn"),
        ({"text": "a", "label": 1}, "has none of the columns messages, prompt, instruction; it has text, label"),
        ({"prompt": ""}, "has none of the columns"),
        ({"messages": [{"role": "human", "content": "a"}]}, "role"),
        ({"messages": [{"content": "a"}]}, "messages must be a list of role"),
        ({"messages": ["a"]}, "messages must be a list of role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages must be a list of role"),
        ({"prompt": 5}, "messages must be a list of role"),
        ({"prompt": "a", "tags": 5}, "row 2"),
        ("a", "holds str, not an object"),
    ],
)
def test_a_bad_row_is_refused_with_its_number(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(SpecError, match="row 2") as caught:
        read(tmp_path, {"prompt": "fine"}, row)
    assert message in str(caught.value)


def test_a_line_that_is_no_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n{"prompt": \n')
    with pytest.raises(SpecError, match=r"bad\.jsonl, line 2 is not JSON"):
        read_prompts(tmp_path / "bad.jsonl")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("empty.jsonl", "", "holds no prompts"),
        ("one.json", '{"prompt": "a"}', "holds dict, not a list"),
        ("words.txt", "a", r"reads \.jsonl, \.json, \.csv and \.parquet, not \.txt"),
        ("words", "a", "not a file without ending"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(SpecError, match=message):
        read_prompts(tmp_path / name)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"nowhere\.jsonl is not there"):
        read_prompts(tmp_path / "nowhere.jsonl")


@pytest.mark.parametrize("text", ["[Scene: a kitchen] What do I cook?", "[1, 2, 3]: sum them up", "[1, 2, 3]"])
def test_a_prompt_may_begin_with_a_bracket(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, {"prompt": text}) == [prompt(text)]


@pytest.mark.parametrize("name", ["latin.jsonl", "latin.json", "latin.csv", "broken.parquet"])
def test_a_file_of_other_bytes_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b'prompt\n{"prompt": "caf\xe9"}\n')
    with pytest.raises(SpecError, match=name):
        read_prompts(tmp_path / name)


@pytest.mark.parametrize(("name", "text"), [("sheet.csv", "prompt\na\n"), ("sheet.jsonl", '{"prompt": "a"}\n'), ("sheet.json", '[{"prompt": "a"}]')])
def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert read_prompts(tmp_path / name) == [prompt("a")]


def test_a_chat_that_cannot_be_stored_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "half.jsonl").write_text('{"prompt": "half an emoji \\ud83d"}\n')
    with pytest.raises(SpecError, match="row 1"):
        read_prompts(tmp_path / "half.jsonl")


def test_the_digest_covers_ids_tags_and_order_but_not_the_place(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    write_parquet(tmp_path / "sub" / "b.parquet", ROWS)
    digest = content_digest(read_prompts(tmp_path / "a.jsonl"))
    assert content_digest(read_prompts(tmp_path / "sub" / "b.parquet")) == digest
    assert content_digest(EXPECTED[::-1]) != digest
    assert content_digest([prompt("Suggest a gift.", "gift"), EXPECTED[1]]) != digest
    assert content_digest([prompt("Suggest a present.", "gift", "date"), EXPECTED[1]]) != digest


def test_a_moved_file_is_gathered_and_a_changed_one_refused(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    request = PromptSet(location=str(tmp_path / "a.jsonl"), content_digest=content_digest(EXPECTED))
    (tmp_path / "a.jsonl").rename(tmp_path / "b.jsonl")
    moved = request.model_copy(update={"location": str(tmp_path / "b.jsonl")})
    assert gather(moved) == EXPECTED
    assert content_key(moved) == content_key(request)
    write_jsonl(tmp_path / "b.jsonl", ROWS[:1])
    with pytest.raises(SpecError, match="has changed since the study was read"):
        gather(moved)


def test_gathered_prompts_rest_in_the_store(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    request, store = PromptSet(location=str(tmp_path / "a.jsonl"), content_digest=content_digest(EXPECTED)), Store(tmp_path / "store")
    assert list(MAKE[PromptSet]([request], store, Silence())) == [(request, None)]
    assert [prompt_from_row(row) for row in store.rows(request)] == EXPECTED


@given(some.lists(some.tuples(some.sampled_from(["system", "user"]), some.text()), min_size=1, max_size=3), some.lists(some.text(), max_size=3))
def test_a_stored_prompt_comes_back_as_it_was(turns: list[tuple[Any, str]], tags: list[str]) -> None:
    written = Prompt(messages=tuple(Message(role=role, content=content) for role, content in turns), tags=tuple(tags))
    assert prompt_from_row(prompt_row(written)) == written
    assert prompt_from_row(prompt_rows([written])[0]) == written


@given(some.integers(1, 30), some.integers(1, 40), some.integers(1, 40), some.integers())
def test_what_is_taken_is_nested_and_in_the_files_order(count: int, small: int, large: int, seed: int) -> None:
    small, large = sorted((small, large))
    everyone = prompts(count)
    few, many = take(everyone, small, seed), take(everyone, large, seed)
    assert (len(few), len(many)) == (min(small, count), min(large, count))
    assert [p for p in many if p in few] == few
    assert [p for p in everyone if p in many] == many


@given(some.integers(1, 20), some.integers(1, 20), some.integers(), some.randoms(use_true_random=False))
def test_what_is_taken_depends_on_no_position(count: int, limit: int, seed: int, random: Any) -> None:
    shuffled = prompts(count)
    random.shuffle(shuffled)
    assert {p.id for p in take(shuffled, limit, seed)} == {p.id for p in take(prompts(count), limit, seed)}


def test_another_seed_takes_others_and_no_limit_takes_all() -> None:
    everyone = prompts(40)
    assert len({frozenset(p.id for p in take(everyone, 10, seed)) for seed in range(5)}) == 5
    assert take(everyone, None, 0) == everyone
