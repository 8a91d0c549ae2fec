import json
import socket
import threading
import time

import numpy as np

from benchmarks.faults import Stock, Wire, beyond_limits
from benchmarks.session import jitter_p99, rollouts_to
from robot_io.sim import sim_limits

HERE = {"x.pos": 0.0, "y.pos": 0.6, "z.pos": 0.2, "gripper.pos": 50.0}


def audit(path, *lines) -> int:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return beyond_limits(path, sim_limits())


def test_what_is_beyond_limits_is_counted(tmp_path):
    path = tmp_path / "audit.jsonl"
    assert beyond_limits(path, sim_limits()) == 0
    step = {**HERE, "x.pos": 0.04}
    assert audit(path, [HERE, HERE], [step, HERE], [HERE, step]) == 0
    assert audit(path, [HERE, HERE], [{**HERE, "x.pos": 0.05}, HERE]) == 1
    assert audit(path, [{**HERE, "z.pos": 0.02}, {**HERE, "z.pos": 0.02}]) == 1, "below the workspace"
    assert audit(path, [{**HERE, "gripper.pos": 101.0}, HERE]) == 1
    far = {**HERE, "x.pos": 0.3}
    assert audit(path, [HERE, HERE], [far, far]) == 0, "armed again somewhere else"


def test_the_wire_delays_cuts_and_comes_back():
    server = socket.create_server(("127.0.0.1", 0))
    wire = Wire(server.getsockname())
    near = socket.create_connection(wire.address)
    far, _ = server.accept()
    near.sendall(b"one")
    assert far.recv(10) == b"one"
    wire.cut = True
    near.sendall(b"two")
    far.settimeout(0.2)
    try:
        raise AssertionError(far.recv(10))
    except TimeoutError:
        pass
    threading.Timer(0.1, lambda: setattr(wire, "cut", False)).start()
    far.settimeout(5)
    assert far.recv(10) == b"two"
    wire.delay_s = 0.3
    began = time.monotonic()
    near.sendall(b"three")
    assert far.recv(10) == b"three"
    assert time.monotonic() - began > 0.25
    for end in (near, far, server):
        end.close()


def test_rollouts_until_nine_in_ten_succeed():
    def lines(*success: bool) -> list[dict]:
        return [{"behaviour": "rollout", "success": one, "interventions": 0} for one in success]

    assert rollouts_to(lines(*[False] * 10, *[True] * 30)) == 28
    assert rollouts_to(lines(*[True, False] * 30)) is None
    assert rollouts_to(lines(*[True] * 19)) is None
    helped = [{**line, "interventions": 3} for line in lines(*[True] * 20)]
    assert rollouts_to([*helped, *lines(*[True] * 20)]) == 38, "what a person helped to does not count"


def test_jitter_is_the_distance_from_the_period():
    assert jitter_p99(np.full(100, 50.0)) == 0
    assert jitter_p99(np.array([50.0] * 90 + [40.0] * 10)) == 10


def test_what_was_lost_is_counted(tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("one.parquet", "two.parquet"):
        (tmp_path / "data" / name).write_text(name)
    before = Stock.of(tmp_path)
    (tmp_path / "data" / "three.parquet").write_text("three")
    assert before.lost(Stock.of(tmp_path)) == 0
    (tmp_path / "data" / "one.parquet").write_text("other")
    (tmp_path / "data" / "two.parquet").unlink()
    assert before.lost(Stock.of(tmp_path)) == 2
    assert Stock(3, {}).lost(Stock(1, {})) == 2
