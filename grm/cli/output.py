"""The folder a verb writes: whether it may, and which command and commit made it."""

import os
import re
import shlex
import shutil
import subprocess
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from ..errors import OutputError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def check_output(folder: Path, *, resume: bool = False) -> None:
    """Raise `OutputError` unless `folder` is new (or, to resume, holds a run) and can be written."""
    if resume and not folder.is_dir():
        raise OutputError(f"there is no run to resume in {folder}; leave out --resume to start one")
    if not resume and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} exists already; choose another folder, delete it, or go on with --resume")
    parent = next(p for p in (folder, *folder.absolute().parents) if p.is_dir())
    if not os.access(parent, os.W_OK):
        raise OutputError(f"{parent} is not writable; choose an output folder you may write to")
    free = shutil.disk_usage(parent).free
    if free < 50e6:
        raise OutputError(f"{parent} has {free / 1e6:.0f} MB left; expected at least 50 MB: free some space")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be made ({error.strerror}); choose another output folder") from error


def command_line(command: "DataclassInstance") -> str:
    """The command that does this again: its task and all that is not the default, whoever called it."""
    words = ["grm", *re.findall("[A-Z][a-z]+", type(command).__name__)]  # TextScore is `grm text score`
    words = [word.lower() for word in words]
    for field in fields(command):
        value = getattr(command, field.name)
        if field.name != "task" and value == field.default:
            continue
        if tyro.conf.Positional not in getattr(field.type, "__metadata__", ()):
            words.append(f"--{field.name.replace('_', '-')}")
        if value is not True:
            words += [str(part) for part in value] if isinstance(value, tuple) else [str(value)]
    return shlex.join(words)


def commit() -> str:
    """The commit this runs from, with + where files differ from it; empty outside of a checkout."""
    home = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty=+"], cwd=home, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return ""
    return found.stdout.strip()
