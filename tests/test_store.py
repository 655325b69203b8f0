"""The store: nothing is made twice, nothing half-made is seen, nothing damaged is read."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from punnett.errors import StoreError
from punnett.spec.key import content_key
from punnett.spec.prompt import PromptSet
from punnett.store import MANIFEST, REQUEST, ROWS, Store, damage, read_rows, write_rows
from small_nouns import BASE, PLAIN, PROMPTS, rollouts

COLUMNS = {"number": int, "word": str}
ROW = {"number": 1, "word": "naïve 日本 🐚"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def fill(store: Store, noun: PromptSet = PROMPTS, word: str = ROW["word"]) -> Path:
    """Make an entry with rows and a file in a folder of its own."""
    with store.write(noun, work={"tokens": 3}) as draft:
        write_rows(draft / ROWS, [{"number": 1, "word": word}], COLUMNS)
        (draft / "adapter").mkdir()
        (draft / "adapter" / "weights.bin").write_bytes(bytes(range(256)))
    return store.folder(noun)


def numbered(number: int) -> PromptSet:
    return PromptSet(content_digest=str(number))


def drafts(store: Store) -> list[Path]:
    return list((store.root / "unfinished").glob("*"))


def test_what_was_written_is_there_for_every_later_process(store: Store) -> None:
    assert not store.has(PROMPTS)
    folder = fill(store)
    for reader in (store, Store(store.root), Store(str(store.root))):
        assert reader.has(PROMPTS)
        assert reader.open(PROMPTS) == folder
        assert reader.rows(PROMPTS) == [ROW]
    assert (folder / "adapter" / "weights.bin").read_bytes() == bytes(range(256))
    assert drafts(store) == []


def test_an_entry_lies_under_its_kind_and_key(store: Store) -> None:
    key = content_key(PROMPTS)
    assert fill(store) == store.root / "promptset" / key[:2] / key
    assert store.folder(PROMPTS.model_copy(update={"name": "renamed", "location": "/elsewhere"})) == store.folder(PROMPTS)
    assert list(store.entries()) == [store.folder(PROMPTS)]


def test_an_entry_says_what_was_asked_and_how_it_was_made(store: Store) -> None:
    folder = fill(store)
    request = json.loads((folder / REQUEST).read_text())
    assert PromptSet.model_validate({k: v for k, v in request.items() if k != "noun"}) == PROMPTS
    manifest = store.manifest(PROMPTS)
    assert (manifest["key"], manifest["noun"], manifest["work"]) == (content_key(PROMPTS), "PromptSet", {"tokens": 3})
    assert set(manifest["files"]) == {REQUEST, ROWS, "adapter/weights.bin"}
    assert {"punnett", "torch", "transformers"} <= set(manifest["versions"])


def test_what_is_not_there_is_an_error_that_names_it(store: Store) -> None:
    for asked in (store.open, store.rows, store.manifest):
        with pytest.raises(StoreError, match=f"no PromptSet {content_key(PROMPTS)}; `punnett run` makes it"):
            asked(PROMPTS)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_inside_leaves_nothing(store: Store, error: type[BaseException]) -> None:
    def break_off() -> None:
        with store.write(PROMPTS) as draft:
            (draft / "half").write_text("made")
            raise error

    with pytest.raises(error):
        break_off()
    assert not store.has(PROMPTS)
    assert [path for path in store.root.rglob("*") if path.is_file()] == []
    assert drafts(store) == []


def test_nothing_is_seen_before_it_is_whole(store: Store) -> None:
    with store.write(PROMPTS) as draft:
        (draft / "file").write_text("made")
        assert not Store(store.root).has(PROMPTS)
        assert list(store.entries()) == []
    assert store.has(PROMPTS)


def flip_a_byte(folder: Path) -> None:
    content = bytearray((folder / "adapter" / "weights.bin").read_bytes())
    content[100] ^= 1
    (folder / "adapter" / "weights.bin").write_bytes(content)


def truncate(folder: Path) -> None:
    os.truncate(folder / ROWS, 10)


def delete(folder: Path) -> None:
    (folder / ROWS).unlink()


def change_the_request(folder: Path) -> None:
    (folder / REQUEST).write_text("{}")


def manifest_holding(content: bytes) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        (folder / MANIFEST).write_bytes(content)

    return harm


DAMAGES = {
    "a flipped byte": flip_a_byte,
    "a truncated file": truncate,
    "a deleted file": delete,
    "a changed request": change_the_request,
    "a deleted manifest": lambda folder: (folder / MANIFEST).unlink(),
    "an empty manifest": manifest_holding(b""),
    "half a manifest": manifest_holding(b'{"files": {'),
    "a manifest of bytes": manifest_holding(b"\xff\xfe\x00"),
    "a manifest that is a list": manifest_holding(b"[]"),
    "a manifest without files": manifest_holding(b'{"key": "x"}'),
    "a manifest of other files": manifest_holding(b'{"files": 5}'),
}


@pytest.mark.parametrize("harm", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_entry_is_set_aside_with_a_warning_and_made_again(store: Store, harm: Callable[[Path], None]) -> None:
    harm(fill(store))
    later = Store(store.root)
    with pytest.warns(UserWarning, match=f"{content_key(PROMPTS)} is damaged"):
        assert not later.has(PROMPTS)
    [aside] = (store.root / "damaged").iterdir()
    assert aside.name.startswith(content_key(PROMPTS))
    with pytest.raises(StoreError, match="the store has no PromptSet"):
        later.rows(PROMPTS)
    fill(later)
    assert Store(store.root).rows(PROMPTS) == [ROW]
    assert list(later.entries()) == [store.folder(PROMPTS)]


def test_damage_is_noticed_on_opening_too(store: Store) -> None:
    flip_a_byte(fill(store))
    with pytest.warns(UserWarning, match="does not match its hash"), pytest.raises(StoreError, match="has no PromptSet"):
        Store(store.root).open(PROMPTS)


def test_sound_neighbours_of_a_damaged_entry_stay(store: Store) -> None:
    flip_a_byte(fill(store))
    fill(store, numbered(1))
    later = Store(store.root)
    with pytest.warns(UserWarning, match="damaged"):
        later.has(PROMPTS)
    assert later.rows(numbered(1)) == [ROW]


def test_an_entry_that_was_removed_is_missing_even_where_it_was_seen(store: Store) -> None:
    shutil.rmtree(fill(store))
    assert not store.has(PROMPTS)


def test_writing_over_a_damaged_entry_never_vouches_for_it(store: Store) -> None:
    flip_a_byte(fill(store))
    later = Store(store.root)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fill(later)
        assert not later.has(PROMPTS) or damage(later.folder(PROMPTS)) is None


def test_of_two_writers_of_one_key_one_entry_stays_whole(store: Store) -> None:
    others = Store(store.root)
    with store.write(PROMPTS) as first, others.write(PROMPTS) as second:
        assert first != second
        write_rows(first / ROWS, [{"number": 1, "word": "first"}], COLUMNS)
        write_rows(second / ROWS, [{"number": 2, "word": "second"}], COLUMNS)
    # the inner one settled first, and stays
    assert Store(store.root).rows(PROMPTS) == [{"number": 2, "word": "second"}]
    assert drafts(store) == []


def test_many_writers_at_once_leave_one_whole_entry(store: Store) -> None:
    start = threading.Barrier(8)

    def write(word: str) -> None:
        start.wait()
        fill(Store(store.root), word=word)

    writers = [threading.Thread(target=write, args=(str(number),)) for number in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    [row] = Store(store.root).rows(PROMPTS)
    assert row["word"] in set("01234567")
    assert damage(store.folder(PROMPTS)) is None
    assert drafts(store) == []


def test_an_entry_is_found_by_four_digits_of_its_key(store: Store) -> None:
    folder = fill(store)
    assert store.find(folder.name[:4]) == store.find(folder.name) == folder


@pytest.mark.parametrize("prefix", ["", "abc", "ABCDEF", "xyzw", "../../..", "****"])
def test_what_is_no_key_is_refused(store: Store, prefix: str) -> None:
    fill(store)
    with pytest.raises(StoreError, match="is no key"):
        store.find(prefix)


def test_a_prefix_of_nothing_or_of_several_is_refused(store: Store) -> None:
    first = fill(store)
    missing = "0000" if not first.name.startswith("0000") else "1111"
    with pytest.raises(StoreError, match=f"no entry whose key starts with {missing}"):
        store.find(missing)
    twin = first.with_name(first.name[:-1] + ("0" if first.name[-1] != "0" else "1"))
    shutil.copytree(first, twin)
    with pytest.raises(StoreError, match="2 entries start with") as caught:
        store.find(first.name[:6])
    assert twin.name in str(caught.value)


def test_finding_a_damaged_entry_is_refused(store: Store) -> None:
    flip_a_byte(fill(store))
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(StoreError, match="was damaged and has been set aside"):
        Store(store.root).find(content_key(PROMPTS)[:8])


def leave_draft(store: Store, process_id: int) -> Path:
    draft = store.root / "unfinished" / f"{content_key(PROMPTS)}-{process_id}-0123abcd"
    draft.mkdir(parents=True)
    (draft / "half").write_text("made")
    return draft


def test_drafts_of_dead_processes_are_cleared_and_of_living_ones_kept(store: Store) -> None:
    living = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    try:
        gone, theirs, ours = (leave_draft(store, process) for process in (dead.pid, living.pid, os.getpid()))
        assert store.clear_unfinished() == 1
        assert sorted(drafts(store)) == sorted([theirs, ours])
        assert not gone.exists()
        assert (theirs / "half").read_text() == "made"
    finally:
        living.kill()
        living.wait()


def test_an_empty_store_has_nothing_to_clear_or_find(store: Store) -> None:
    assert store.clear_unfinished() == 0
    assert list(store.entries()) == []


def test_a_failure_is_kept_until_the_next_success(store: Store) -> None:
    assert store.failure(PROMPTS) is None
    store.record_failure(PROMPTS, "the loss was not finite", "traceback ü")
    found = Store(store.root).failure(PROMPTS)
    assert found == {"noun": "PromptSet", "key": content_key(PROMPTS), "reason": "the loss was not finite", "details": "traceback ü"}
    assert store.failure(numbered(1)) is None
    fill(store)
    assert store.failure(PROMPTS) is None
    assert not list((store.root / "failures").glob("*.json"))


def test_a_file_is_kept_beside_a_failure(store: Store) -> None:
    with contextlib.suppress(ValueError), store.write(PROMPTS) as draft:
        (draft / "log.jsonl").write_text("the last steps")
        store.keep_beside_failure(PROMPTS, draft / "log.jsonl")
        raise ValueError("the training broke")
    assert drafts(store) == []
    assert (store.root / "failures" / f"{content_key(PROMPTS)}.log.jsonl").read_text() == "the last steps"


def test_half_a_failure_record_stops_nobody(store: Store) -> None:
    store.record_failure(PROMPTS, "reason", "details")
    [record] = (store.root / "failures").glob("*.json")
    os.truncate(record, 20)
    store.failure(PROMPTS)


def test_an_empty_table_keeps_its_columns(tmp_path: Path) -> None:
    import polars

    write_rows(tmp_path / ROWS, [], COLUMNS)
    assert read_rows(tmp_path / ROWS) == []
    assert polars.read_parquet_schema(tmp_path / ROWS) == {"number": polars.Int64, "word": polars.String}


def test_a_missing_value_comes_back_missing(tmp_path: Path) -> None:
    write_rows(tmp_path / ROWS, [{"number": None, "word": ""}], COLUMNS)
    assert read_rows(tmp_path / ROWS) == [{"number": None, "word": ""}]


# writes entry after entry until it is killed, and says when the first is done
WRITER = """
import sys
from pathlib import Path
from punnett.spec.prompt import PromptSet
from punnett.store import Store
store, first = Store(sys.argv[1]), int(sys.argv[2])
for number in range(first, first + 10**6):
    with store.write(PromptSet(content_digest=str(number))) as draft:
        (draft / "adapter").mkdir()
        (draft / "adapter" / "weights.bin").write_bytes(bytes(300_000))
        (draft / "rows").write_text(str(number))
    if number == first:
        print("ready", flush=True)
"""


def test_a_kill_at_any_moment_leaves_only_whole_entries(store: Store) -> None:
    moments = random.Random(0)
    for round_number in range(10):
        command = [sys.executable, "-c", WRITER, str(store.root), str(round_number * 10**6)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"ready\n"
            time.sleep(moments.uniform(0.0, 0.15))
            writer.send_signal(signal.SIGKILL)
        assert writer.returncode == -signal.SIGKILL
    visible = [path for path in store.root.glob("promptset/??/*") if path.is_dir()]
    assert len(visible) >= 10
    assert [(path.name, damage(path)) for path in visible if damage(path)] == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(store.has(numbered(int((path / "rows").read_text()))) for path in visible)
    # some were killed in the middle: their drafts are cleared, and whole entries stay
    store.clear_unfinished()
    assert drafts(store) == []
    assert len(list(store.entries())) == len(visible)


def test_nouns_of_one_key_and_other_kinds_lie_apart(store: Store) -> None:
    assert len({store.folder(noun) for noun in (PROMPTS, PLAIN, BASE, rollouts())}) == 4
