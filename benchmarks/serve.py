"""What a reward server adds to the model's own time, and whether it keeps many streams apart.

Latency: one stream over loopback and the same model in this process judge the same frames in turn, so that a slow
moment of a shared machine hits both alike. Load: 64 robots at once, each at its own rate, for a minute; every answer is
compared with what the model says of that episode in this process. The server is `grm serve`, started here.
"""

import argparse
import contextlib
import platform
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import torch

from grm.client import RewardClient, ServerError
from grm.metrics import Interval
from grm.models.multiview import GRM
from grm.reward import Frame, Task

from .latency import SIZE, walks
from .results import write_result

WALKS = 8
"""Different episodes; more streams see them in another light."""
TOLERANCE = 1e-4
"""Largest difference of two potentials that are the same, judged in batches of other sizes."""


def episodes(count: int, length: int, views: int, size: int) -> list[tuple[Task, list[Frame]]]:
    """`count` episodes of a scripted expert at a door, as pictures of `size` pixels, each in a light of its own."""
    some = walks(min(count, WALKS), length)
    found = []
    for number in range(count):
        walk, light = some[number % len(some)], 0.6 + 0.4 * number / count
        names = sorted(walk.views)[:views]
        films = {
            name: (walk.views[name] * light).astype(np.uint8).repeat(size // SIZE, 1).repeat(size // SIZE, 2)
            for name in names
        }
        frames = [Frame(views={name: films[name][t] for name in names}, time=t / 10) for t in range(length)]
        found.append((Task(instruction="open the door", goal=frames[-1]), frames))
    return found


@contextlib.contextmanager
def served(threads: int) -> Iterator[str]:
    """The address of a `grm serve` with the packaged model."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    command = [sys.executable, "-m", "grm", "serve", "--port", str(port), "--threads", str(threads)]
    server = subprocess.Popen([*command, "--max-per-second", "1e6"], stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        with RewardClient(url) as client:
            for _ in range(600):
                if server.poll() is not None:
                    raise RuntimeError(f"grm serve ended with status {server.returncode}")
                with contextlib.suppress(ServerError):
                    client.health()
                    break
                time.sleep(0.1)
        yield url
    finally:
        server.terminate()
        server.wait(30)


def latency(model: GRM, url: str, rounds: int, calls: int, views: int, size: int) -> list[dict[str, float]]:
    """Milliseconds of a frame, here and there, per round."""
    rows = []
    every = episodes(WALKS, calls, views, size)
    for number in range(rounds + 1):  # the first warms up
        task, frames = every[number % WALKS]
        here, there = [], []
        carry = model.start(task)
        with RewardClient(url) as client, client.stream(task) as stream:
            for frame in frames:
                began = time.perf_counter()
                [carry], [own] = model.extend([carry], [[frame]])
                middle = time.perf_counter()
                answer = stream.extend([frame])
                there.append(1e3 * (time.perf_counter() - middle))
                here.append(1e3 * (middle - began))
                if abs(answer.last() - own.last()) > TOLERANCE:
                    raise RuntimeError(f"the server says {answer.last()}, the model {own.last()}")
        row = {"round": number}
        for name, times in (("in_process", here), ("served", there)):
            row |= {f"{name}_ms_p50": float(np.median(times)), f"{name}_ms_p99": float(np.quantile(times, 0.99))}
        rows.append(row | {f"added_ms_{p}": row[f"served_ms_{p}"] - row[f"in_process_ms_{p}"] for p in ("p50", "p99")})
    return rows[1:]


def load(model: GRM, url: str, streams: int, seconds: float, rate_hz: float, views: int, size: int) -> dict[str, float]:
    """Robots that send a frame every 1 / `rate_hz` seconds: answers lost, answers of another stream, and how long."""
    length = round(seconds * rate_hz)
    every = episodes(streams, length, views, size)
    expected = [model.judge(task, frames).potential for task, frames in every]
    waits: list[float] = []
    lost, mixed = [0] * streams, [0] * streams
    gate = threading.Barrier(streams)

    def drive(n: int) -> None:
        task, frames = every[n]
        with RewardClient(url, timeout_s=30) as client, client.stream(task) as stream:
            gate.wait()
            due = time.perf_counter() + n / streams / rate_hz  # robots are not in step
            for t, frame in enumerate(frames):
                time.sleep(max(0.0, due - time.perf_counter()))
                asked = time.perf_counter()
                try:
                    potential = stream.extend([frame]).last()
                except ServerError:
                    lost[n] += 1
                    continue
                waits.append(1e3 * (time.perf_counter() - asked))
                mixed[n] += abs(potential - expected[n][t]) > TOLERANCE
                due = max(due + 1 / rate_hz, time.perf_counter() - 1)

    threads = [threading.Thread(target=drive, args=(n,)) for n in range(streams)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - began
    return {
        "streams": streams,
        "frames": sum(map(len, expected)),
        "lost": sum(lost),
        "mixed": sum(mixed),
        "load_ms_p50": float(np.median(waits)),
        "load_ms_p99": float(np.quantile(waits, 0.99)),
        "load_frames_per_second": len(waits) / took,
        "distinct_finals": len(np.unique(np.round([e[-1] for e in expected], 4))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--calls", type=int, default=200, help="frames per round")
    parser.add_argument("--views", type=int, default=2)
    parser.add_argument("--size", type=int, default=128, help="height and width of a picture, in pixels")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0, help="that the load lasts")
    parser.add_argument("--rate", type=float, default=1.0, help="frames per second of each stream under load")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = GRM.from_pretrained()
    with served(threads=1) as url:
        rows = latency(model, url, options.rounds, options.calls, options.views, options.size)
        crowd = load(model, url, options.streams, options.seconds, options.rate, options.views, options.size)

    def over_rounds(name: str) -> Interval:
        values = [row[name] for row in rows]
        return Interval(float(np.median(values)), *(float(q) for q in np.quantile(values, [0.1, 0.9])))

    summary = {name: over_rounds(name) for name in rows[0] if name != "round"} | crowd
    print(summary)
    about = {
        "interval": "median, 10 % and 90 % quantile over rounds",
        "processor": platform.processor() or platform.machine(),
        "rate_hz_under_load": options.rate,
    }
    print(write_result("serve", summary, seeds=[0], rows=rows, **about))


if __name__ == "__main__":
    main()
