"""The states a learner visited, labelled: where a reward model must be right and nobody demonstrated anything.

A learner is trained on a GRM's potential as `policies.one_shot` trains it, and all of its rollouts are kept as instance
seed and actions. Simulated again afterwards, action by action and bit-identically, some of them become labelled
episodes: training is not slowed, and cameras, rate and labels can be others than the learner's own.
"""

import hashlib
import itertools
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from envs.cameras import Cameras
from envs.experts import demonstrations
from envs.metaworld import VIEWS, MetaWorldEnv
from grm.data.episodes import Episode
from grm.data.lerobot import EpisodeWriter, read_episodes
from grm.data.replay import read_replay
from grm.errors import CheckpointError
from grm.models.checkpoint import locate
from grm.models.multiview import GRM, packaged_checkpoint
from grm.train import adapt

from .arms import GRM_SHAPED
from .collecting import Rollout
from .log import arm_folder
from .one_shot import OneShotSettings, horizon_of, make_env, record_demonstration, run_arm, write_config

DECISIONS_PER_FRAME = 2
"""Of the learner: 40 decisions per second, 20 frames per second as in the other data sets."""


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """One rollout of a learner: enough to simulate it again."""

    number: int
    """1 for the learner's first."""
    seed: int
    """Of the instance."""
    actions: np.ndarray
    """(decisions, 4)"""


def judged_views(replay: list[Episode]) -> tuple[str, ...]:
    """The cameras a GRM with this replay sample is asked about: today's, unless it was trained on others."""
    if not replay or any(set(VIEWS) <= set(episode.views) for episode in replay):
        return VIEWS
    return tuple(replay[0].views)


def train_learner(
    settings: OneShotSettings,
    model: str,
    folder: Path,
    *,
    on_rollout: Callable[[Rollout], bool | None] = lambda rollout: None,
) -> bool:
    """Demonstrate, adapt the GRM and train the shaped learner in `folder`; goes on where it stopped. True at the end.

    `folder` is then a run of `grm demo` with one arm, and has each rollout's `Recording` in `recordings`. Raises
    `CheckpointError` if it was begun with other settings or with another GRM.
    """
    folder.mkdir(parents=True, exist_ok=True)
    source = locate(model, packaged_checkpoint())
    _require_same_model(source, folder)
    write_config(folder, settings, {"model": model}, resume=(folder / "config.json").exists())
    replay = list(read_replay(source))
    if not (folder / "demonstration").exists():
        env = make_env(settings.task, 250, views=judged_views(replay))
        [episode] = demonstrations(env, 1, seed=10_000 + settings.seed)
        env.close()
        EpisodeWriter(folder / "demonstration").append(episode)
    demonstration = record_demonstration(settings, folder / "demonstration")
    if not (folder / "grm").exists():
        old = GRM.from_pretrained(source)
        new = adapt(old, demonstration, replay, steps=settings.adaptation_steps, seed=settings.seed)
        new.save_pretrained(folder / "grm.partial")
        (folder / "grm.partial").replace(folder / "grm")
    _keep_last(folder)  # should the last session have been killed between a checkpoint and this

    def keep(rollout: Rollout) -> bool | None:
        _keep_last(folder)
        return on_rollout(rollout)

    return run_arm(settings, GRM_SHAPED, folder, on_rollout=keep)


def _keep_last(folder: Path) -> None:
    """Copy the last failed and the last successful rollout to `recordings`, by number."""
    recordings = folder / "recordings"
    recordings.mkdir(exist_ok=True)
    for path in arm_folder(folder, GRM_SHAPED.name).glob("last_*.npz"):
        with np.load(path, allow_pickle=False) as data:
            kept = recordings / f"{int(data['number']):04d}.npz"
        partial = kept.with_suffix(".partial")
        shutil.copy(path, partial)
        partial.replace(kept)


def read_recordings(folder: Path, *, every: int = 1) -> list[Recording]:
    """Every `every`-th rollout of a `train_learner` folder, in order: numbers `every`, 2 `every`, … .

    Raises `CheckpointError` if there is none.
    """
    found = []
    for path in sorted((folder / "recordings").glob("*.npz")):
        if int(path.stem) % every == 0:
            with np.load(path, allow_pickle=False) as data:
                found.append(Recording(int(data["number"]), int(data["seed"]), data["actions"]))
    if not found:
        raise CheckpointError(f"{folder} holds no rollout to keep of every {every}; expected a learner's finished run")
    return found


def label_recordings(
    recordings: list[Recording],
    task: str,
    horizon: int,
    *,
    views: tuple[str, ...] = VIEWS,
    size: int = 64,
    label_every: int = 5,
    on_episode: Callable[[], None] = lambda: None,
) -> list[Episode]:
    """Simulate the rollouts again: episodes of behaviour `learner` at 20 frames per second, labelled by the prover.

    A frame is every second decision's, and the last. Its action is the mean of the decisions taken until the next one,
    its reward their sum. The prover is asked at every `label_every`-th frame and at the last; in between the labels are
    interpolated, as `envs.experts.record` does. `horizon` is the learner's, in decisions.

    Raises `CheckpointError` if a rollout does not end where it ended while learning: another version's simulation.
    """
    env = make_env(task, horizon)
    cameras = Cameras(env, views, height=size, width=size)
    try:
        episodes = []
        for recording in recordings:
            episodes.append(_simulate(env, cameras, recording, label_every))
            on_episode()
    finally:
        cameras.close()
        env.close()
    return episodes


def _simulate(env: MetaWorldEnv, cameras: Cameras, recording: Recording, label_every: int) -> Episode:
    length = len(recording.actions)
    kept = sorted({*range(0, length, DECISIONS_PER_FRAME), length})
    asked = sorted({*range(0, len(kept), label_every), len(kept) - 1})
    observation, _ = env.reset(seed=recording.seed)
    states, frames, paid, known, ended = [], [], [], [], False
    for decision in range(length + 1):
        if decision == kept[len(states)]:
            if len(states) in asked:
                known.append(env.true_progress(provers=5))  # a judge is measured here; the simulation is left as it was
            states.append(observation["state"])
            frames.append(cameras.render())
        if decision == length:
            break
        if ended:
            raise _other_simulation(recording, decision)
        observation, reward, terminated, truncated, _ = env.step(recording.actions[decision])
        paid.append(reward)
        ended = terminated or truncated
    if not ended:
        raise _other_simulation(recording, length)
    spans = list(itertools.pairwise(kept))
    actions = [recording.actions[a:b].mean(0) for a, b in spans]
    success = np.zeros(len(kept), bool)
    success[-1] = env.succeeded
    return Episode(
        task=env.task,
        instruction=env.instruction,
        views={name: np.stack([frame[name] for frame in frames]) for name in frames[0]},
        rate_hz=80 / env.action_repeat / DECISIONS_PER_FRAME,
        state=np.stack(states),
        # Holds still at last: that action is never taken.
        actions=np.stack([*actions, np.append(np.zeros(3), actions[-1][3])]).astype(np.float32),
        rewards=np.array([*(sum(paid[a:b]) for a, b in spans), 0.0], np.float32),
        success=success,
        progress=np.interp(np.arange(len(kept)), asked, known).astype(np.float32),
        behaviour="learner",
        seed=recording.seed,
    )


def _other_simulation(recording: Recording, decision: int) -> CheckpointError:
    return CheckpointError(
        f"rollout {recording.number} of {len(recording.actions)} decisions played back to another end at {decision}; "
        f"expected the simulation it was recorded in: train the learner again with this version"
    )


def collect_visited(
    settings: OneShotSettings,
    model: str,
    data: Path,
    *,
    every: int = 5,
    label_every: int = 5,
    on_rollout: Callable[[Rollout], bool | None] = lambda rollout: None,
    on_episode: Callable[[], None] = lambda: None,
) -> None:
    """Train a learner in `data/runs/<task>` and write every `every`-th rollout to the data set `data/<task>`.

    Nothing is done if that exists: it is written whole, or not at all. The pictures are of the cameras the learner's
    GRM saw and of today's, so that other GRMs can be asked about the same states; their goal picture is the last frame
    of `data/runs/<task>/demonstration`. Raises `CheckpointError` as `train_learner` does.
    """
    root, folder = data / settings.task, data / "runs" / settings.task
    if (root / "meta" / "info.json").exists():
        _require_same_model(locate(model, packaged_checkpoint()), folder)
        return
    if not train_learner(settings, model, folder, on_rollout=on_rollout):
        return
    [demonstration] = read_episodes(folder / "demonstration", [0])
    views = tuple(dict.fromkeys((*VIEWS, *demonstration.views)))
    episodes = label_recordings(
        read_recordings(folder, every=every),
        settings.task,
        horizon_of(demonstration),
        views=views,
        label_every=label_every,
        on_episode=on_episode,
    )
    EpisodeWriter(root).append(*episodes)


def _require_same_model(source: Path, folder: Path) -> None:
    """Note which weights this run is about, or raise `CheckpointError` if it was about others."""
    digest = hashlib.sha256((source / "model.safetensors").read_bytes()).hexdigest()
    note = folder / "model.sha256"
    if not note.exists():
        note.write_text(digest + "\n")
    elif note.read_text().strip() != digest:
        raise CheckpointError(
            f"{folder} was begun with another GRM than {source}; expected the same: a data set is about one GRM's "
            f"learners, name another folder"
        )
