"""A call of a model in, its answer out of a cache: what was paid for once is never bought again.

One SQLite file beside the store. It is a cache of calls, not of findings: the rows that studies read lie in the store.
"""

import json
import sqlite3
from pathlib import Path
from typing import Any

from punnett.spec.key import digest_of


class AnswerCache:
    """Answers of models by what was asked: model, messages, sampling settings and seed."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(path, isolation_level=None, timeout=60)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL)")

    def get(self, call: dict[str, Any]) -> dict[str, Any] | None:
        """The answer to a call that was made before, or None."""
        found = self._connection.execute("SELECT answer FROM answers WHERE key = ?", (digest_of(call),)).fetchone()
        return json.loads(found[0]) if found else None

    def put(self, call: dict[str, Any], answer: dict[str, Any]) -> None:
        """Keep an answer; on the disk before this returns."""
        self._connection.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (digest_of(call), json.dumps(answer, ensure_ascii=False)))

    def close(self) -> None:
        """Close the file."""
        self._connection.close()
