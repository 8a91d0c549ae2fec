"""How long the GRM takes for one new frame set, against the bare encoder's forward on the same pictures.

Streaming: `GRM.extend` by one frame of V views for each of B prefixes; in turn with it, so that a slow moment of a
shared machine hits both alike, `network.encoder` on the same B * V pictures, already floats on the device and in the
layout that the GRM uses itself. A ratio is that of the medians within a round of calls; reported is the median over
rounds. Processor time stands next to the clock's, for machines that do something else meanwhile.

Offline: a LeRobotDataset made on the spot, decoded from its videos and judged, and where the time goes. The weights are
random: they take as long as trained ones.
"""

import argparse
import platform
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from envs.cameras import PIXELS
from envs.metaworld import MetaWorldEnv
from grm.data.episodes import Episode
from grm.data.lerobot import EpisodeWriter, read_episodes
from grm.metrics import Interval
from grm.models.multiview import GRM, Architecture, MultiViewNetwork
from grm.reward import Task

from .results import write_result

VIEWS = ("corner", "behindGripper", "gripperPOV")
BATCHES = (1, 8)
SIZE = 64


class Clock:
    """Milliseconds of the calls it makes, by the wall and by this process's processors."""

    def __init__(self, device: torch.device) -> None:
        self.wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def __call__[T](self, call: Callable[[], T]) -> T:
        self.wait()
        wall, cpu = time.perf_counter(), time.process_time()
        result = call()
        self.wait()
        self.cpu.append(1e3 * (time.process_time() - cpu))
        self.wall.append(1e3 * (time.perf_counter() - wall))
        return result


def walks(count: int, length: int) -> list[Episode]:
    """The scripted expert opening a door, seen by three cameras."""
    env = MetaWorldEnv(views=VIEWS, height=SIZE, width=SIZE, horizon=length)
    episodes = []
    for seed in range(count):
        observation, _ = env.reset(seed=seed)
        films: dict[str, list[np.ndarray]] = {view: [] for view in VIEWS}
        for _ in range(length):
            for view in VIEWS:
                films[view].append(observation[PIXELS + view])
            observation, *_ = env.step(env.expert_action().astype(np.float32))
        episodes.append(
            Episode(
                task=env.task,
                instruction=env.instruction,
                views={view: np.stack(film) for view, film in films.items()},
                rate_hz=10.0,
                state=np.zeros((length, 2), np.float32),
                actions=np.zeros((length, 4), np.float32),
                rewards=np.zeros(length, np.float32),
                success=np.zeros(length, bool),
                progress=np.full(length, np.nan, np.float32),
                seed=seed,
            )
        )
    env.close()
    return episodes


def stream(
    model: GRM,
    encoder: nn.Module,
    episodes: list[Episode],
    batch: int,
    rounds: int,
    calls: int,
) -> dict[str, Any]:
    """`rounds` times `calls` new frame sets for each of `batch` prefixes, against the bare float32 `encoder`."""
    device = next(encoder.parameters()).device
    chosen = list(islice(cycle(episodes), batch))
    carries = [model.start(Task(instruction=episode.instruction, goal=episode.frames[-1])) for episode in chosen]
    carries, _ = model.extend(carries, [episode.frames[:2] for episode in chosen])
    moments = cycle(range(2, len(chosen[0])))
    every, every_bare = Clock(device), Clock(device)
    ratios, cpu_ratios = [], []
    for warm in range(rounds + 1):
        extended, bare = Clock(device), Clock(device)
        for t in islice(moments, calls):
            new = [[episode.frames[t]] for episode in chosen]
            pictures = np.stack([view for [frame] in new for view in frame.views.values()])
            images = torch.from_numpy(pictures).to(device).permute(0, 3, 1, 2).float().div(255)
            carries, _ = extended(partial(model.extend, carries, new))
            with torch.inference_mode():
                bare(partial(encoder, images))
        if not warm:
            continue  # kernels, caches and allocators of the first round
        ratios.append(np.median(extended.wall) / np.median(bare.wall))
        cpu_ratios.append(np.median(extended.cpu) / np.median(bare.cpu))
        for total, part in ((every, extended), (every_bare, bare)):
            total.wall += part.wall
            total.cpu += part.cpu
    low, high = np.quantile(ratios, [0.1, 0.9])
    return {
        "ratio": float(np.median(ratios)),
        "ratio_p10": float(low),
        "ratio_p90": float(high),
        "ratio_cpu_time": float(np.median(cpu_ratios)),
        "frame_ms_p50": float(np.median(every.wall)),
        "frame_ms_p99": float(np.quantile(every.wall, 0.99)),
        "frame_cpu_ms_p50": float(np.median(every.cpu)),
        "bare_ms_p50": float(np.median(every_bare.wall)),
        "bare_ms_p99": float(np.quantile(every_bare.wall, 0.99)),
    }


def offline(model: GRM, episodes: list[Episode], *, rounds: int) -> dict[str, float]:
    """Episodes per second from a LeRobotDataset on disk to judgements, and the share of each part in the time."""
    encoding: list[float] = []
    begun: list[float] = []
    before = model.network.encoder.register_forward_pre_hook(lambda *_: begun.append(time.perf_counter()))
    after = model.network.encoder.register_forward_hook(lambda *_: encoding.append(time.perf_counter() - begun[-1]))
    decode, judge, encode = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "episodes"
        EpisodeWriter(root).append(*episodes)
        for _ in range(rounds + 1):  # the first warms up
            start = time.perf_counter()
            read = list(read_episodes(root))
            middle = time.perf_counter()
            encoding.clear()
            for episode in read:
                goal = episode.frames[-1]  # which one it is takes no time
                model.judge(Task(instruction=episode.instruction, goal=goal), episode.frames)
            decode.append(middle - start)
            judge.append(time.perf_counter() - middle)
            encode.append(sum(encoding))
    before.remove()
    after.remove()
    total = np.array(decode[1:]) + np.array(judge[1:])
    return {
        "episodes_per_second": float(np.median(len(episodes) / total)),
        "decode_share": float(np.median(np.array(decode[1:]) / total)),
        "encode_share": float(np.median(np.array(encode[1:]) / total)),
        "heads_share": float(np.median((np.array(judge[1:]) - np.array(encode[1:])) / total)),
    }


def over_rounds(row: dict[str, Any]) -> Interval:
    """The median ratio of the rounds, between their 10th and 90th percentile."""
    return Interval(float(row["ratio"]), float(row["ratio_p10"]), float(row["ratio_p90"]))


class Halved(nn.Module):
    """An encoder that calculates in bfloat16."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(images.device.type, torch.bfloat16):
            return self.encoder(images).float()


def fresh_grm(device: str, seed: int) -> GRM:
    torch.manual_seed(seed)
    return GRM(MultiViewNetwork(Architecture()).to(device))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--calls", type=int, default=25, help="of each of the two per round")
    parser.add_argument("--episodes", type=int, default=8, help="judged offline, of 50 frames and three views each")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch on the processor")
    parser.add_argument("--compile", action="store_true", help="also a row for torch.compile; takes minutes to compile")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    episodes = walks(options.episodes, 50)
    rows: list[dict[str, Any]] = []
    for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        model = fresh_grm(device, seed=0)
        halved = fresh_grm(device, seed=0)
        halved.network.encoder = Halved(halved.network.encoder)
        paths = {"float32": model, "bfloat16 encoder": halved}
        if options.compile:
            compiled = fresh_grm(device, seed=0)
            compiled.network.encoder.compile()
            paths["compiled encoder"] = compiled
        for name, way in paths.items():
            for batch in BATCHES:
                row: dict[str, Any] = {
                    "device": device,
                    "path": name,
                    "batch": batch,
                    "views": len(VIEWS),
                }
                row |= stream(way, model.network.encoder, episodes, batch, options.rounds, options.calls)
                rows.append(row)
                print(row, flush=True)
    judged = offline(fresh_grm("cpu", seed=0), episodes, rounds=3)
    one, eight = (
        next(row for row in rows if (row["device"], row["path"], row["batch"]) == ("cpu", "float32", batch))
        for batch in BATCHES
    )
    summary = {
        "stream_ratio": over_rounds(eight),
        "stream_ratio_b1": over_rounds(one),
        "stream_ratio_cpu_time": eight["ratio_cpu_time"],
        "stream_ratio_b1_cpu_time": one["ratio_cpu_time"],
        **{key: eight[key] for key in ("frame_ms_p50", "frame_ms_p99", "bare_ms_p50")},
        **{f"{key}_b1": one[key] for key in ("frame_ms_p50", "frame_ms_p99", "bare_ms_p50")},
        **judged,
    }
    print(summary)
    about = {
        "clock": "wall, unless a key says cpu_time",
        "threads": options.threads,
        "processor": platform.processor() or platform.machine(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none at hand",
        "torch": torch.__version__,
        "weights": "random, seed 0",
        "table": rows,
    }
    print(write_result("latency", summary, seeds=[0], rows=rows, **about))


if __name__ == "__main__":
    main()
