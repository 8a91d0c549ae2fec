"""What the text verbs read and write, and how they go on after an interruption."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from rich.markup import escape

from ...data.stepwise import Format, LabelledSolution, Neutral, read_solutions
from ...errors import OutputError, TraceError
from ...text.steps import extract_answer
from ..output import check_output, command_line, commit
from ..terminal import complaints, console
from .models import Endpoints

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_HARMLESS = {"out", "resume", "batch", *Endpoints.__dataclass_fields__} - {"api"}
"""Settings that may change between an interrupted run and the one that goes on with it."""


class Question(NamedTuple):
    """A problem and, where known, its answer."""

    problem: str
    answer: str | None


def begin(command: "DataclassInstance", out: Path, *, resume: bool, name: str = "config.json") -> None:
    """Make the folder, or go on in it. Raises `OutputError` if it is not new, or held a run with other settings.

    Settings are kept in the file `name`: in the folder of a checkpoint config.json is the network's.
    """
    check_output(out, resume=resume)
    path = out / name
    asked = json.loads(json.dumps(asdict(command), default=str))
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))["settings"]
        other = [name for name, value in asked.items() if name not in _HARMLESS and before.get(name) != value]
        if other:
            raise OutputError(f"{out} holds a run with other {', '.join(other)}; choose another folder")
    write_json(path, {"command": command_line(command), "commit": commit(), "settings": asked})


def read_files(
    paths: Sequence[Path], format: Format | None, neutral: Neutral
) -> tuple[list[LabelledSolution], list[TraceError]]:
    """Solutions of all files, and what could not be read. Raises `TraceError` if that is everything."""
    if not paths:
        raise TraceError("no file is named; expected at least one of solutions, as JSON lines")
    broken: list[TraceError] = []
    solutions = [one for path in paths for one in read_solutions(path, format=format, neutral=neutral, broken=broken)]
    if not solutions:
        raise broken[0]
    return solutions, broken


def read_questions(paths: Sequence[Path]) -> list[Question]:
    """Problems of JSON-lines files, each once: under `problem`, `prompt` or `question`, with `answer` where known.

    An answer may be a worked one that ends as GSM8K's do. Raises `TraceError`, naming the line, on a record without.
    """
    if not paths:
        raise TraceError("no file is named; expected at least one of questions, as JSON lines")
    found: dict[str, Question] = {}
    for path in paths:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise TraceError(f"{path} cannot be read ({error}); expected a file of JSON lines") from error
        for number, line in enumerate(lines, 1):
            if line.strip():
                question = _question(path, number, line)
                found.setdefault(question.problem, question)
    if not found:
        raise TraceError(f"{', '.join(map(str, paths))}: no question; expected a JSON object per line")
    return list(found.values())


def unescape(text: str) -> str:
    r"""`\n` and `\t` as typed on a command line, for what they stand for."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write one object, readable. Raises `OutputError` if that fails."""
    _write(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_lines(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write one object per line. Raises `OutputError` if that fails."""
    _write(path, "".join(json.dumps(one, ensure_ascii=False, allow_nan=False) + "\n" for one in records))


def complain(broken: Sequence[TraceError]) -> None:
    """Say what could not be read or judged; of many the first ten."""
    for error in broken[:10]:
        complaints.print(f"[bold red]left out:[/bold red] {escape(str(error))}", highlight=False, soft_wrap=True)
    if len(broken) > 10:
        complaints.print(f"[bold red]left out:[/bold red] and {len(broken) - 10} more", highlight=False)


def interrupted(done: int, total: int, what: str) -> NoReturn:
    """End after Ctrl-C, saying how to go on."""
    console.print(f"interrupted; {done} of {total} {what} are kept: run the same command with --resume added to go on")
    raise SystemExit(130)


def _question(path: Path, number: int, line: str) -> Question:
    try:
        item = json.loads(line)
    except ValueError as error:
        raise TraceError(f"{path}, line {number}: not JSON ({error}); expected one object per line") from error
    item = item if isinstance(item, dict) else {}
    problem = next((item[name] for name in ("problem", "prompt", "question") if name in item), None)
    if not isinstance(problem, str) or not problem.strip():
        raise TraceError(
            f"{path}, line {number}: no question ({', '.join(map(str, item)) or 'no names'}); expected text under "
            f"problem, prompt or question"
        )
    answer = item.get("answer")
    if answer is not None:
        answer = extract_answer(str(answer)) or str(answer).strip() or None
    return Question(problem, answer)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}); choose another output folder") from error
