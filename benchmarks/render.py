"""Frames per second of `envs.cameras.Cameras` against the environment's own `render()`, all in one run.

Every round renders with each in turn, so that a slow moment of a shared machine hits all alike; the ratio is the median
over rounds.
"""

import argparse
import time

import gymnasium as gym
import numpy as np

import envs  # noqa: F401 (chooses the renderer before mujoco is imported)
from envs.cameras import Cameras
from envs.metaworld import VIEWS, MetaWorldEnv

from .results import write_result


def frames_per_second(render, frames: int, count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        render()
    return frames * count / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="door-unlock-v3")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()

    env = MetaWorldEnv(options.task)
    env.reset(seed=0)
    # The environment's own way, as shipped: gymnasium's MujocoRenderer, one camera, the same size.
    inner = env._inner
    inner.render_mode, inner.camera_name = "rgb_array", "corner"
    inner.mujoco_renderer = gym.envs.mujoco.mujoco_rendering.MujocoRenderer(
        inner.model, inner.data, width=options.size, height=options.size, camera_name="corner"
    )
    ways = {
        "own": (lambda: inner.mujoco_renderer.render("rgb_array"), 1, 4),
        "faithful": (Cameras(env, VIEWS, height=options.size, width=options.size, quality="faithful").render, 3, 2),
        "fast": (Cameras(env, VIEWS, height=options.size, width=options.size).render, 3, 20),
    }
    for render, _, _ in ways.values():
        assert np.ptp(render() if not isinstance(render(), dict) else next(iter(render().values()))) > 0
    rows = [
        {"round": k, **{name: frames_per_second(*way) for name, way in ways.items()}} for k in range(options.rounds)
    ]
    median = {name: float(np.median([row[name] for row in rows])) for name in ways}
    summary = {
        "ratio_fast": float(np.median([row["fast"] / row["own"] for row in rows])),
        "ratio_faithful": float(np.median([row["faithful"] / row["own"] for row in rows])),
        **{f"frames_per_s_{name}": value for name, value in median.items()},
    }
    print(summary)
    print(write_result("render", summary, seeds=[0], rows=rows, task=options.task, size=options.size))


if __name__ == "__main__":
    main()
