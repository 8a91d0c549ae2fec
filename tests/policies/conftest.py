"""A run of `grm demo` that got as far as its adapted GRM: what training, evaluation and the page start from."""

import shutil
from pathlib import Path

import pytest

from policies.one_shot import OneShotSettings, record_demonstration, write_config

from ..tiny import tiny_grm

SETTINGS = OneShotSettings(guidance=0.0, task="reach-v3", rollouts=3, evaluation_episodes=2)


@pytest.fixture(scope="session")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read-only: config.json, the demonstration and a GRM of random weights."""
    folder = tmp_path_factory.mktemp("begun")
    write_config(folder, SETTINGS, {"command": "grm demo --task reach", "commit": "0"}, resume=False)
    record_demonstration(SETTINGS, folder / "demonstration")
    tiny_grm().save_pretrained(folder / "grm")
    return folder


@pytest.fixture
def begun_copy(begun: Path, tmp_path: Path) -> Path:
    """One's own to go on with."""
    return shutil.copytree(begun, tmp_path / "run")
