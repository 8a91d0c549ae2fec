"""The page of a one-shot run: what the GRM saw, what the arms learned, in plain words."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from grm.data.episodes import Episode
from grm.data.lerobot import read_episodes
from grm.metrics import mean_absolute_error, spearman
from grm.models.multiview import GRM
from grm.report import Clip, RunPage, write_page

from .one_shot import ARMS, OneShotSettings, expert_clip, play_back, read_curve, read_evaluation


def success_rates(folder: Path) -> dict[str, float | None]:
    """Success on fresh instances: the cloned policy before training, then each arm; None where not finished."""
    before = [read_evaluation(folder, arm, "before") for arm in ARMS]
    rates: dict[str, float | None] = {"before": next((rate for rate in before if rate is not None), None)}
    return rates | {arm: read_evaluation(folder, arm, "evaluation") for arm in ARMS}


def write_run_page(settings: OneShotSettings, folder: Path, seconds: float) -> Path:
    """Write index.html from what the run folder holds so far; returns its path."""
    [demonstration] = read_episodes(folder / "demonstration", [0])
    model = GRM.from_pretrained(folder / "grm")
    clips = _clips(model, demonstration, settings, folder)
    curves = [curve for arm in ARMS if (curve := read_curve(folder, arm)) is not None]
    rates = success_rates(folder)
    rows: list[list[str | float]] = [["behaviour-cloned, before any rollout", "0", _percent(rates["before"]), "–"]]
    for curve in curves:
        last = curve.success[-25:]
        rows.append([curve.arm, str(len(curve.rollout)), _percent(rates[curve.arm]), _percent(float(last.mean()))])
    config = json.loads((folder / "config.json").read_text())
    page = RunPage(
        title=f"{demonstration.instruction[0].upper()}{demonstration.instruction[1:]}",
        subtitle=f"grm demo · {settings.task} · seed {settings.seed} · one expert demonstration",
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


def _clips(model: GRM, demonstration: Episode, settings: OneShotSettings, folder: Path) -> list[Clip]:
    clips = [expert_clip(model, demonstration, settings.task, seed=30_000 + settings.seed)]
    for name, title in (("last_failure", "A failed rollout"), ("last_success", "A late success")):
        recording = folder / "shaped" / f"{name}.npz"
        if recording.exists():
            clips.append(play_back(model, demonstration, settings.task, recording, title))
    return clips


def _percent(rate: float | None) -> str:
    return "not finished" if rate is None else f"{100 * rate:.0f} %"


def _verdict(rates: dict[str, float | None], settings: OneShotSettings) -> str:
    before, sparse, shaped = (rates[name] for name in ("before", "sparse", "shaped"))
    if before is None or sparse is None or shaped is None:
        return "This run is not finished; what you see is what there is so far."
    change = "helped" if shaped > sparse + 0.02 else "hurt" if shaped < sparse - 0.02 else "made no difference"
    return (
        f"From one demonstration and {settings.rollouts} rollouts: {_percent(before)} success before, "
        f"{_percent(sparse)} with the sparse reward, {_percent(shaped)} with the GRM's shaping. "
        f"Here, on one seed, shaping {change}."
    )


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
