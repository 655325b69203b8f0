"""Content key in, folder out: a store of finished entries, each written beside, synced, renamed, and verified on read.

    <root>/<kind>/<first two digits>/<key>/request.json    the noun that was asked for
                                           manifest.json   versions, host, timings, a hash of every file
                                           rows.parquet, adapter/, log.jsonl, ...   what was made
    <root>/unfinished/   what is being written; emptied when the next run starts
    <root>/damaged/      entries that no longer match their manifest; never read again
    <root>/failures/     one JSON file per request that could not be made
    <root>/runs/         one JSON line per run of a study: what it was expected to take, and took

Knows keys and bytes; knows nothing of what the rows mean.
"""

import contextlib
import hashlib
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from punnett.errors import StoreError
from punnett.spec.key import Noun, content_key, digest_of

MANIFEST, REQUEST, ROWS = "manifest.json", "request.json", "rows.parquet"
LIBRARIES = ("punnett", "torch", "transformers", "peft", "tokenizers", "inspect-ai", "polars", "numpy")


class Store:
    """A folder of entries named by content key. Safe against a kill at any moment: an entry is whole or absent."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self._verified: set[Path] = set()

    def folder(self, noun: Noun) -> Path:
        """Where the entry of a noun lies, whether it exists or not."""
        return self._place(type(noun).__name__.lower(), content_key(noun))

    def has(self, noun: Noun) -> bool:
        """Whether the noun's entry exists and is undamaged; a damaged one is set aside and counts as missing."""
        return self._is_sound(self.folder(noun))

    def open(self, noun: Noun) -> Path:
        """The folder of a finished, verified entry. Raises StoreError if there is none."""
        folder = self.folder(noun)
        if not self._is_sound(folder):
            raise StoreError(f"the store has no {type(noun).__name__} {content_key(noun)}; `punnett run` makes it")
        return folder

    def rows(self, noun: Noun) -> list[dict[str, Any]]:
        """The rows of a finished entry. Raises StoreError if there is none."""
        return read_rows(self.open(noun) / ROWS)

    def manifest(self, noun: Noun) -> dict[str, Any]:
        """How, when and where an entry was made."""
        return json.loads((self.open(noun) / MANIFEST).read_text())

    @contextlib.contextmanager
    def write(self, noun: Noun, **facts: Any) -> Iterator[Path]:
        """A folder to fill; on a clean exit it becomes the noun's entry in one rename, on an error it is removed.

        `facts` (plain values, or a dict that the caller goes on filling) go into the manifest.
        """
        place = self.folder(noun)
        draft = self.root / "unfinished" / f"{content_key(noun)}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        draft.mkdir(parents=True)
        started = time.time()
        try:
            yield draft
            request = {"noun": type(noun).__name__, **noun.model_dump(mode="json")}
            (draft / REQUEST).write_text(json.dumps(request, indent=1, ensure_ascii=False))
            files = {str(p.relative_to(draft)): file_digest(p) for p in sorted(draft.rglob("*")) if p.is_file()}
            manifest = {
                "key": content_key(noun),
                "noun": type(noun).__name__,
                "made_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "seconds": round(time.time() - started, 3),
                "host": socket.gethostname(),
                "versions": installed_versions(),
                **facts,
                "files": files,
            }
            (draft / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False, default=str))
            sync_tree(draft)
            settle(draft, place)
            self._is_sound(place)
            self._failure_file(noun).unlink(missing_ok=True)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def record_failure(self, noun: Noun, reason: str, details: str) -> None:
        """Keep why a request could not be made, for `status` and the report; the next success forgets it."""
        path = self._failure_file(noun)
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {"noun": type(noun).__name__, "key": content_key(noun), "reason": reason, "details": details}
        path.write_text(json.dumps(record, indent=1, ensure_ascii=False))

    def keep_beside_failure(self, noun: Noun, file: Path) -> None:
        """Save a file of a draft that is about to be removed."""
        place = self._failure_file(noun)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place.with_name(f"{content_key(noun)}.{file.name}"))

    def failure(self, noun: Noun) -> dict[str, Any] | None:
        """The recorded failure of a request that has not been made since."""
        path = self._failure_file(noun)
        if not path.exists() or self.has(noun):
            return None
        try:
            return json.loads(path.read_text())
        except ValueError:
            return {"noun": type(noun).__name__, "key": content_key(noun), "reason": "its record was cut off", "details": ""}

    def note_run(self, name: str, record: dict[str, Any]) -> None:
        """Add what a run was expected to take, and took, to those of earlier runs of the same name."""
        path = self._runs_file(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def noted_runs(self, name: str) -> list[dict[str, Any]]:
        """Earlier runs of a name, oldest first; a line that was cut off is left out."""
        runs = []
        for line in self._runs_file(name).read_text(encoding="utf-8").splitlines() if self._runs_file(name).exists() else []:
            with contextlib.suppress(ValueError):
                runs.append(json.loads(line))
        return runs

    def _runs_file(self, name: str) -> Path:
        return self.root / "runs" / f"{digest_of([name])[:16]}.jsonl"

    def clear_unfinished(self) -> int:
        """Remove what killed runs on this machine left half made; returns how many drafts there were."""
        drafts = [d for d in (self.root / "unfinished").glob("*-*-*") if not _is_running(d.name.split("-")[1])]
        for draft in drafts:
            shutil.rmtree(draft, ignore_errors=True)
        return len(drafts)

    def find(self, prefix: str) -> Path:
        """The one entry whose key starts with `prefix`. Raises StoreError if there is none, or more than one."""
        if len(prefix) < 4 or any(letter not in "0123456789abcdef" for letter in prefix):
            raise StoreError(
                f'"{prefix}" is no key: give at least four of its hexadecimal digits (`punnett status STUDY` lists those of the students)'
            )
        found = [p for p in self.root.glob(f"*/{prefix[:2]}/{prefix}*") if (p / MANIFEST).exists()]
        if not found:
            raise StoreError(f"the store {self.root} has no entry whose key starts with {prefix}")
        if len(found) > 1:
            raise StoreError(f"{len(found)} entries start with {prefix}; give more digits: {', '.join(p.name for p in found[:5])}")
        if not self._is_sound(found[0]):
            raise StoreError(f"the entry {found[0].name} was damaged and has been set aside; `punnett run` makes it again")
        return found[0]

    def entries(self) -> Iterator[Path]:
        """Every finished entry, sound or not."""
        yield from sorted(p.parent for p in self.root.glob(f"*/??/*/{MANIFEST}") if p.parts[-4] not in ("damaged", "unfinished"))

    def _place(self, kind: str, key: str) -> Path:
        return self.root / kind / key[:2] / key

    def _failure_file(self, noun: Noun) -> Path:
        return self.root / "failures" / f"{content_key(noun)}.json"

    def _is_sound(self, folder: Path) -> bool:
        if folder in self._verified and (folder / MANIFEST).exists():
            return True
        if not folder.exists():
            return False
        problem = damage(folder)
        if problem is None:
            self._verified.add(folder)
            return True
        aside = self.root / "damaged" / f"{folder.name}-{uuid.uuid4().hex[:8]}"
        aside.parent.mkdir(parents=True, exist_ok=True)
        os.replace(folder, aside)
        import warnings

        warnings.warn(f"store entry {folder.name} is damaged ({problem}); it was moved to {aside} and is made again", stacklevel=3)
        return False


def _is_running(process_id: str) -> bool:
    """Whether a process of this machine still lives; our own drafts are cleaned by their writer."""
    try:
        os.kill(int(process_id), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return True


def damage(folder: Path) -> str | None:
    """What is wrong with an entry, or None: every file that the manifest names must be there with its hash."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        files = dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its manifest cannot be read: {error}"
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if file_digest(path) != expected:
            return f"{name} does not match its hash"
    return None


def settle(draft: Path, place: Path) -> None:
    """Rename a draft to its place. If another run has settled the same key first, that entry stays."""
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.rename(draft, place)
    except OSError:
        if not (place / MANIFEST).exists():
            raise
    sync(place.parent)


def sync_tree(folder: Path) -> None:
    """Flush every file and folder below `folder` to the disk, before the rename that makes them visible."""
    for path in sorted(folder.rglob("*")):
        sync(path)
    sync(folder)


def sync(path: Path) -> None:
    """Flush one file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_rows(path: Path, rows: list[dict[str, Any]], columns: dict[str, Any]) -> None:
    """Write rows as Parquet; `columns` maps names to polars types, so that an empty table has its columns too."""
    import polars

    polars.DataFrame(rows, schema=columns, orient="row").write_parquet(path, compression="zstd")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a Parquet file as plain dicts."""
    import polars

    return polars.read_parquet(path).to_dicts()


def installed_versions() -> dict[str, str]:
    """Versions of the libraries whose change could change numbers."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
