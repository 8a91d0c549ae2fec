"""What was computed or paid for, one line each, on disk at once: an interrupted run loses nothing and goes on.

Append-only JSON lines. A line that a crash cut short holds nothing whole and is taken away when the journal is opened
again; any other line that cannot be read is an error, for it may have been paid for.
"""

import hashlib
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import TraceError


def fingerprint(content: Mapping[str, Any]) -> str:
    """A key for what was asked: SHA-256 of its JSON, independent of the order of its names."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


class Journal:
    """Entries by key, in memory and, given a path, on disk. Threads may share one; processes may not."""

    def __init__(self, path: str | Path | None = None) -> None:
        """Open or begin the journal at `path`; None keeps it in memory. Raises `TraceError` on a line that is none."""
        self._path = None if path is None else Path(path)
        self._entries: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()
        if self._path is not None and self._path.exists():
            self._read(self._path)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def get(self, key: str) -> dict[str, Any] | None:
        """What was written under `key`, if anything."""
        return self._entries.get(key)

    def append(self, key: str, entry: Mapping[str, Any]) -> None:
        """Write an entry, out of this process before this returns; of several under one key the last counts."""
        line = json.dumps({"key": key, **entry}, ensure_ascii=False) + "\n"
        with self._lock:
            self._entries[key] = dict(entry)
            if self._path is not None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with self._path.open("ab") as file:
                    file.write(line.encode())

    def _read(self, path: Path) -> None:
        whole = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                try:
                    entry = json.loads(line)
                    self._entries[entry.pop("key")] = entry
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    raise TraceError(
                        f"{path}, line {number}: not an entry of a journal; expected a JSON object with a key (mend or "
                        f"remove the line)"
                    ) from error
        if whole < path.stat().st_size:
            with path.open("r+b") as file:
                file.truncate(whole)
