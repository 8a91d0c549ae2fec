"""The page of a one-shot run, and of many: what the GRM saw, what the arms learned, in plain words."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from envs.cameras import Cameras
from grm.data.episodes import Episode
from grm.data.lerobot import read_episodes
from grm.metrics import mean_absolute_error, spearman
from grm.models.multiview import GRM
from grm.report import Clip, RunPage, write_page
from shaping import frame_of

from .arms import CLONED, GRM_SHAPED, SPARSE, Arm
from .grid import Cell
from .log import arm_folder, read_curve
from .one_shot import OneShotSettings, read_evaluation, world_of

PICTURE = 128
"""Pixels of a clip's pictures, larger than the GRM sees them."""
STORY = (CLONED, SPARSE, GRM_SHAPED)
"""The arms of `grm demo`."""


def success_rates(folder: Path, arms: Sequence[Arm] = STORY) -> dict[str, float | None]:
    """Success on fresh instances by name of the arm; None where not finished."""
    return {arm.name: read_evaluation(folder, arm.name) for arm in arms}


def write_run_page(settings: OneShotSettings, folder: Path, seconds: float, arms: Sequence[Arm] = STORY) -> Path:
    """Write index.html from what the run folder holds so far; returns its path."""
    [demonstration] = read_episodes(folder / "demonstration", [0])
    model = GRM.from_pretrained(folder / "grm")
    clips = _clips(model, demonstration, settings, folder, arms)
    curves = [curve for arm in arms if (curve := read_curve(folder, arm.name)) is not None]
    rates = success_rates(folder, arms)
    rows: list[list[str | float]] = []
    for arm in arms:
        curve = read_curve(folder, arm.name)
        count, last = ("0", "–") if curve is None else (str(len(curve.rollout)), _percent(curve.success[-25:].mean()))
        rows.append([f"{arm.name}: {arm.about}", count, _percent(rates[arm.name]), last])
    config = json.loads((folder / "config.json").read_text())
    page = RunPage(
        title=f"{demonstration.instruction[0].upper()}{demonstration.instruction[1:]}",
        subtitle=f"{settings.task} · seed {settings.seed} · one expert demonstration",
        verdict=_verdict(rates, settings),
        clips=clips,
        curves=curves,
        table_headers=[
            "policy",
            "rollouts",
            f"success on {settings.evaluation_episodes} fresh instances",
            "last 25 rollouts",
        ],
        table_rows=rows,
        settings={**asdict(settings), "minutes": round(seconds / 60, 1), "command": config["command"]},
        notes=_notes(clips, demonstration),
    )
    path = folder / "index.html"
    write_page(page, path)
    return path


def write_grid_page(cells: Sequence[Cell], path: Path, *, command: str) -> None:
    """Write a page of many runs: every arm's curve, one per task and seed, and a table of final successes."""
    arms = list(dict.fromkeys(cell.arm for cell in cells))
    tasks = list(dict.fromkeys(cell.settings.task for cell in cells))
    curves = [curve for cell in cells if (curve := read_curve(cell.folder, cell.arm.name)) is not None]
    done = sum(cell.finished for cell in cells)
    rows: list[list[str | float]] = []
    for arm in arms:
        row = [f"{arm.name}: {arm.about}"]
        for task in tasks:
            mine = [cell for cell in cells if cell.arm == arm and cell.settings.task == task]
            known = [rate for cell in mine if (rate := read_evaluation(cell.folder, arm.name)) is not None]
            row.append(f"{_percent(float(np.mean(known)))} ({len(known)} of {len(mine)})" if known else "not finished")
        rows.append([*row])
    first = cells[0].settings
    page = RunPage(
        title=f"One demonstration, {first.rollouts} rollouts",
        subtitle=f"{len(tasks)} tasks · {len(arms)} arms · {done} of {len(cells)} cells finished",
        verdict="Success of each arm's policy on fresh instances, mean over the seeds that are finished.",
        curves=curves,
        table_headers=["arm", *tasks],
        table_rows=rows,
        settings={"command": command, "rollouts": first.rollouts, "evaluation_episodes": first.evaluation_episodes},
        notes=["A curve is what the simulator saw of the learner's own, exploring rollouts, whoever paid for them."],
    )
    write_page(page, path)


def expert_clip(model: GRM, demonstration: Episode, seed: int, *, size: int = PICTURE) -> Clip:
    """The expert on an instance that is not the demonstration's."""
    return _clip(model, demonstration, seed, None, "The expert, on another instance", size)


def recorded_clip(model: GRM, demonstration: Episode, recording: Path, title: str, *, size: int = PICTURE) -> Clip:
    """A recorded rollout, simulated again action by action."""
    with np.load(recording, allow_pickle=False) as data:
        seed, actions, number = int(data["seed"]), data["actions"], int(data["number"])
    return _clip(model, demonstration, seed, list(actions), f"{title} (number {number})", size)


def _clip(
    model: GRM, demonstration: Episode, seed: int, actions: list[np.ndarray] | None, title: str, size: int
) -> Clip:
    env = world_of(demonstration, GRM_SHAPED)
    pictures = Cameras(env, tuple(demonstration.views), height=size, width=size)
    carry = model.start(demonstration.as_goal())
    observation, _ = env.reset(seed=seed)
    frames, judgements, truth, ended, outcome = [], [], [], False, False
    while True:
        frames.append(pictures.render())
        [carry], [judgement] = model.extend([carry], [[frame_of(observation)]])
        judgements.append(judgement)
        truth.append(env.true_progress())
        outcome |= env.succeeded
        # A rollout that nobody told of its success goes on after it, so it is its actions that end it.
        if ended if actions is None else len(frames) > len(actions):
            break
        action = env.expert_action() if actions is None else actions[len(frames) - 1]
        observation, _, terminated, truncated, _ = env.step(action)
        ended = terminated or truncated
    pictures.close()
    env.close()
    return Clip(
        title=title,
        views={name: np.stack([frame[name] for frame in frames]) for name in demonstration.views},
        rate_hz=demonstration.rate_hz,
        potential=np.concatenate([j.potential for j in judgements]),
        spread=np.concatenate([j.spread for j in judgements]),
        judged=np.concatenate([j.judged for j in judgements]),
        outcome=outcome,
        truth=np.array(truth),
        success_probability=np.concatenate([j.success for j in judgements]),
    )


def _clips(
    model: GRM, demonstration: Episode, settings: OneShotSettings, folder: Path, arms: Sequence[Arm]
) -> list[Clip]:
    clips = [expert_clip(model, demonstration, seed=30_000 + settings.seed)]
    for arm in arms:
        if arm.potential != "grm":
            continue
        for name, title in (("last_failure", "A failed rollout"), ("last_success", "A late success")):
            recording = arm_folder(folder, arm.name) / f"{name}.npz"
            if recording.exists():
                of = "" if arm == GRM_SHAPED else f" of the arm {arm.name}"
                clips.append(recorded_clip(model, demonstration, recording, title + of))
    return clips


def _percent(rate: float | None) -> str:
    return "not finished" if rate is None else f"{100 * rate:.0f} %"


def _verdict(rates: dict[str, float | None], settings: OneShotSettings) -> str:
    """What became of the arms of `STORY` that were run, in a sentence or two."""
    if None in rates.values():
        return "This run is not finished; what you see is what there is so far."
    before, sparse, helped = (rates.get(arm.name) for arm in STORY)
    told = ((before, "before"), (sparse, "with the sparse reward"), (helped, "with the GRM"))
    parts = [f"{_percent(rate)} {when}" for rate, when in told if rate is not None]
    if not parts:
        return "The table says what became of each arm."
    sentence = f"Success, from one demonstration and {settings.rollouts} rollouts: {', '.join(parts)}."
    if sparse is None or helped is None:
        return sentence
    change = "helped" if helped > sparse + 0.02 else "hurt" if helped < sparse - 0.02 else "made no difference"
    return f"{sentence} Here, on one seed, the GRM {change}."


def _notes(clips: list[Clip], demonstration: Episode) -> list[str]:
    notes = [
        f"The demonstration has {len(demonstration)} frames at {demonstration.rate_hz:.0f} Hz; it is all the reward "
        f"model was adapted on and all the policy was cloned from.",
        "The dashed line is the simulator's own answer: how far a scripted prover still has to go. Neither the reward "
        "model nor the learner ever sees it.",
    ]
    for clip in clips:
        if clip.truth is None or clip.judged.sum() < 2:
            continue
        error = mean_absolute_error(clip.potential, clip.truth)
        correlation = spearman(clip.potential, clip.truth)
        if np.isfinite(correlation):  # it is undefined where either is constant
            notes.append(
                f"{clip.title}: rank correlation of Φ with the truth {correlation:.2f}, mean error {error:.2f}."
            )
    return notes
