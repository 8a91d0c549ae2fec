"""How every benchmark writes its result: results/<name>.json with command, commit, seeds and a flat summary."""

import csv
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from grm.metrics import Interval

RESULTS = Path(__file__).parent / "results"


def write_result(
    name: str,
    summary: Mapping[str, float | Interval],
    *,
    seeds: Sequence[int],
    rows: Sequence[Mapping[str, object]] = (),
    **about: object,
) -> Path:
    """Write results/<name>.json and, where there are rows, results/<name>.csv; returns the JSON's path.

    Raises `ValueError` for a number that is none: what could not be measured has no place in a table.
    """
    RESULTS.mkdir(exist_ok=True)
    flat = {
        key: (
            {part: round(value, 4) for part, value in entry._asdict().items()}
            if isinstance(entry, Interval)
            else round(float(entry), 4)
        )
        for key, entry in summary.items()
    }
    parts = Path(sys.argv[0]).with_suffix("").parts
    module = ".".join(parts[-parts[::-1].index("benchmarks") - 1 :] if "benchmarks" in parts else parts[-1:])
    command = " ".join(["python", "-m", module.removesuffix(".__main__"), *sys.argv[1:]])
    content = {"command": command, "commit": this_commit(), "seeds": list(seeds), "summary": flat, **about}
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
    if rows:
        fields = list(dict.fromkeys(key for row in rows for key in row))
        with path.with_suffix(".csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, fields, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    return path


def earlier_rows(path: Path) -> list[dict[str, object]]:
    """Of a results CSV written before, its rows without what was empty; none if there is no such file."""

    def value(column: str, text: str) -> object:
        return text if column in ("task", "arm", "commit") else int(text) if text.isdigit() else float(text)

    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [{k: value(k, v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def this_commit() -> str:
    """As of the first result of this process: what it writes itself does not make a changed checkout."""
    return _commit(RESULTS)


@cache
def _commit(folder: Path) -> str:
    command = ["git", "describe", "--always", "--dirty=+"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
