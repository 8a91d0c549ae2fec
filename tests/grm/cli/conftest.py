from collections.abc import Callable
from pathlib import Path

import pytest

from grm import cli
from grm.cli import train
from grm.data.episodes import Episode
from grm.data.lerobot import EpisodeWriter

from ...tiny import square, tiny_grm, tiny_network


def grm(*arguments: object) -> int:
    """The command line in this process; returns the exit status."""
    try:
        cli.main([str(argument) for argument in arguments])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.fixture
def refused(capsys) -> Callable[..., str]:
    """Calls the command line, expects one clear error and status 2, returns the error."""

    def call(*arguments: object) -> str:
        capsys.readouterr()
        assert grm(*arguments) == 2
        said = capsys.readouterr()
        assert said.err.count("error:") == 1
        [line] = said.err.splitlines()
        assert line.startswith("error: ")
        assert "Traceback" not in said.out + said.err
        assert "wrote" not in said.out
        return line

    return call


def write_dataset(root: Path, episodes: list[Episode]) -> Path:
    writer = EpisodeWriter(root)
    for episode in episodes:
        writer.append(episode)
    return root


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """Two demonstrations around a failure, as `grm collect` would write them. Read-only."""
    episodes = [square(0), square(1, behaviour="undo"), square(2)]
    return write_dataset(tmp_path_factory.mktemp("data") / "right", episodes)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A checkpoint of random weights, whose potential is no constant. Read-only."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_grm(11).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def small_networks(monkeypatch):
    monkeypatch.setattr(train, "_new_network", lambda seed, backbone: tiny_network(seed))
