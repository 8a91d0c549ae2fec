"""From simulation to a real table: adapted to the first of two real bimanual recordings, how is the second judged?

`--data` holds two episodes in the raw layout (three cameras, keyframes), read at about `--rate` pictures a second. The
goal is always the first episode's last frame. Arms: the packaged GRM as it is; adapted to the first episode, labelled
by time, with weights that stay on the way as they do by default (`one_shot`), or go all of it, as all others do; by its
keyframes; with one camera instead of three; and the same adaptation of a network that was never trained in simulation.
VOC is the reference's pair of orders; the truth for MAE, stalls and falls is the second episode's keyframes, with
progress linear between them, an annotator's truth and not a simulator's.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress

from grm.data.episodes import Episode
from grm.data.recordings import demonstration, find_recordings
from grm.data.replay import read_replay
from grm.evaluate import score
from grm.metrics import change_f1, changes, expected_interval, mean_absolute_error, value_order_correlation
from grm.models.multiview import GRM, Architecture, MultiViewNetwork, packaged_checkpoint
from grm.reward import Task
from grm.train import adapt

from .results import write_result

ONE_VIEW = "cam_high"


def arms(first: Episode, second: Episode, seed: int, steps: int) -> dict[str, tuple[GRM, Episode, Episode, float]]:
    """By name the model, the demonstration, the judged episode, and the minutes it took to adapt."""
    packaged, replay = GRM.from_pretrained(), list(read_replay(packaged_checkpoint()))
    torch.manual_seed(seed)
    untrained = GRM(MultiViewNetwork(Architecture()))
    unlabelled = replace(first, progress=np.full(len(first), np.nan, np.float32))

    def narrowed(episode: Episode) -> Episode:
        return replace(episode, views={ONE_VIEW: episode.views[ONE_VIEW]})

    found: dict[str, tuple[GRM, Episode, Episode, float]] = {"zero_shot": (packaged, first, second, 0.0)}
    for name, model, shown, judged, share in (
        ("one_shot", packaged, unlabelled, second, 0.9),
        ("one_shot_whole", packaged, unlabelled, second, 1.0),
        ("one_shot_keyframes", packaged, first, second, 1.0),
        ("one_shot_one_view", packaged, narrowed(unlabelled), narrowed(second), 1.0),
        ("one_shot_untrained", untrained, unlabelled, second, 1.0),
    ):
        began = time.perf_counter()
        new = adapt(model, shown, replay, steps=steps, seed=seed, share=share)
        found[name] = new, shown, judged, (time.perf_counter() - began) / 60
    return found


def measure(model: GRM, shown: Episode, judged: Episode) -> dict[str, float]:
    """Orders, error and changes on the judged episode; the goal is the shown one's end.

    `falls` is the share of windows in which Φ falls, where the truth never does; `stall_f1` is of windows that stand
    still; `taken_for_cyclic` whether the goal was taken for the beginning, which silences both anchors.
    """
    goal = shown.frames[-1]
    item = score(model, judged, goal)
    [carry], _ = model.extend([model.start(Task(instruction=judged.instruction, goal=goal))], [judged.frames[:1]])
    return {
        "voc_plus": value_order_correlation(item.potential),
        "voc_minus": item.voc_minus,
        "mae": mean_absolute_error(item.potential, item.truth),
        "stall_f1": change_f1(changes(item.potential), changes(item.truth), 0),
        "falls": float((changes(item.potential) == -1).mean()),
        "end": float(item.potential[-1]),
        "abstained": float(np.isnan(item.potential).mean()),
        "taken_for_cyclic": float(carry.cyclic),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/real_table"))
    parser.add_argument("--rate", type=float, default=3.0, help="pictures a second; the GRM learnt from five")
    parser.add_argument("--steps", type=int, default=200, help="of adaptation")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of adaptation")
    options = parser.parse_args()

    recordings, broken = find_recordings([options.data])
    if broken or len(recordings) != 2:
        raise SystemExit(f"{options.data} has {len(recordings)} readable episodes and {broken} broken; expected two")
    first, second = (demonstration(recording, rate_hz=options.rate) for recording in recordings)
    rows: list[dict[str, object]] = []
    with Progress() as progress:
        for seed in progress.track(options.seeds, description="seeds"):
            for arm, (model, shown, judged, minutes) in arms(first, second, seed, options.steps).items():
                rows.append({"arm": arm, "seed": seed, **measure(model, shown, judged), "minutes": minutes})
    rng = np.random.default_rng(0)
    metrics = [key for key in rows[0] if key not in ("arm", "seed")]
    summary = {
        f"{metric}_{arm}": expected_interval([float(str(r[metric])) for r in rows if r["arm"] == arm], rng)
        for arm in dict.fromkeys(str(r["arm"]) for r in rows)
        for metric in metrics
    }
    for arm in dict.fromkeys(str(r["arm"]) for r in rows):
        print(f"{arm:20}", *(f"{metric} {summary[f'{metric}_{arm}'].value:.3f}" for metric in metrics))
    about = {"frames": [len(first), len(second)], "rate_hz": first.rate_hz, "steps": options.steps}
    print(write_result("real_table", summary, seeds=options.seeds, rows=rows, **about))


if __name__ == "__main__":
    main()
