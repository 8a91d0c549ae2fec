import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

RUN = """
import os, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from grm.workers import end_with_the_parent
def work():
    print(os.getpid(), flush=True)
    time.sleep(600)
if __name__ == "__main__":
    with ProcessPoolExecutor(1, get_context("spawn"), end_with_the_parent) as pool:
        pool.submit(work).result()
"""


def test_a_worker_ends_when_its_parent_is_killed(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(RUN)
    parent = subprocess.Popen(
        [sys.executable, script],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        text=True,
    )
    child = int(parent.stdout.readline())
    os.kill(child, 0)  # it is there
    parent.kill()
    try:
        parent.communicate(timeout=20)  # the worker inherited the pipe: it ends when both are gone
    except subprocess.TimeoutExpired:
        os.kill(child, signal.SIGKILL)
        parent.communicate()
        pytest.fail("the worker outlived its parent by 20 seconds")
