"""Frames per second of `envs.cameras.Cameras` against the environment's own `render()`, all in one run.

One camera, one size, and a process of its own for every measurement: an OpenGL context that shares its process with
another is no longer "as shipped". Rounds alternate, so that a slow moment of a shared machine hits all alike; the ratio
is the median over rounds.
"""

import argparse
import subprocess
import sys
import time

import metaworld.env_dict
import numpy as np

from envs.cameras import Cameras
from envs.metaworld import MetaWorldEnv

from .results import write_result

WAYS = ("own", "faithful", "fast")


def frames_per_second(way: str, task: str, size: int) -> float:
    if way == "own":  # as Meta-World's users write it
        env = metaworld.env_dict.ALL_V3_ENVIRONMENTS[task](
            render_mode="rgb_array", camera_name="corner", width=size, height=size
        )
        env._set_task_called = True
        env._freeze_rand_vec = False
        env.reset()
        render = env.render
    else:
        ours = MetaWorldEnv(task)
        ours.reset(seed=0)
        cameras = Cameras(ours, ("corner",), height=size, width=size, quality="fast" if way == "fast" else "faithful")

        def render() -> np.ndarray:
            return cameras.render()["corner"]

    image = render()
    assert image.shape == (size, size, 3)
    assert np.ptp(image) > 0, "an empty picture is no frame"
    count = 200 if way == "fast" else 30
    began = time.perf_counter()
    for _ in range(count):
        render()
    return count / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="door-unlock-v3")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", choices=WAYS, help="measure only this one, here, and print its frames per second")
    options = parser.parse_args()
    if options.way:
        print(frames_per_second(options.way, options.task, options.size))
        return

    rows = []
    for k in range(options.rounds):
        row: dict[str, float] = {"round": k}
        for way in WAYS:
            command = [sys.executable, "-m", "benchmarks.render", "--way", way, "--task", options.task]
            command += ["--size", str(options.size)]
            row[way] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
        rows.append(row)
        print(row)
    summary = {
        "ratio_fast": float(np.median([row["fast"] / row["own"] for row in rows])),
        "ratio_faithful": float(np.median([row["faithful"] / row["own"] for row in rows])),
        **{f"frames_per_s_{way}": float(np.median([row[way] for row in rows])) for way in WAYS},
    }
    print(summary)
    print(write_result("render", summary, seeds=[0], rows=rows, task=options.task, size=options.size))


if __name__ == "__main__":
    main()
