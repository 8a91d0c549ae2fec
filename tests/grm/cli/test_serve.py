import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from grm.cli import main
from grm.client import RewardClient, ServerError
from grm.models.multiview import GRM
from grm.reward import Frame, Task


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_it_serves_until_it_is_told_to_stop():
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "grm", "serve", "--port", str(port), "--threads", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        client = RewardClient(f"http://127.0.0.1:{port}", timeout_s=30)
        for _ in range(600):
            try:
                assert client.health()["model"] == "packaged"
                break
            except ServerError:
                assert server.poll() is None, server.stdout.read()
                time.sleep(0.1)
        rng = np.random.default_rng(0)
        frames = [Frame(views={"top": rng.integers(0, 255, (64, 64, 3), np.uint8)}) for _ in range(3)]
        task = Task(instruction="open the door")
        served = client.judge(task, frames).potential
        np.testing.assert_allclose(served, GRM.from_pretrained().judge(task, frames).potential, atol=1e-5)
    finally:
        server.send_signal(signal.SIGTERM)
        said = server.communicate(timeout=30)[0]
    assert server.returncode in (0, -signal.SIGTERM)
    assert f"http://127.0.0.1:{port}" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("token", "host", "says"),
    [
        (None, "0.0.0.0", "--token-file"),
        ("short", "127.0.0.1", "at least 16"),
        ("nonexistent", "127.0.0.1", "cannot be read"),
    ],
)
def test_what_it_refuses(tmp_path: Path, capsys, token, host, says):
    arguments = ["serve", "--host", host]
    if token is not None:
        arguments += ["--token-file", str(tmp_path / token)]
        if token == "short":
            (tmp_path / token).write_text("abc\n")
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert says in capsys.readouterr().err


def test_a_missing_server_is_an_extra_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(SystemExit):
        main(["serve"])
    assert "grm-robotics[serve]" in capsys.readouterr().err
