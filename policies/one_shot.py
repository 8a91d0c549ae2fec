"""One demonstration in, a trained policy out: the experiment behind `grm demo`.

A run adapts a GRM to one expert demonstration of a task, then trains the same learner twice, with the same seed, the
same instances and the same number of rollouts: once on the sparse task reward, once with the GRM's potential shaping
it. Both are evaluated on the same fresh instances. Everything is written as it happens, so an interrupted run resumes.
"""

import csv
import json
import multiprocessing
import queue
import signal
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecExtractDictObs

from envs.cameras import Cameras
from envs.experts import demonstrations
from envs.metaworld import VIEWS, MetaWorldEnv
from grm.data.episodes import Episode
from grm.data.lerobot import EpisodeWriter, read_episodes
from grm.errors import CheckpointError, GrmError, OutputError
from grm.models.multiview import GRM
from grm.report import Clip, Curve
from shaping import ModelPotential, shaping_reward
from shaping.sb3 import VecPotentialShaping

from .checkpoint import has_checkpoint
from .collecting import Rollout
from .demonstration import Demonstration
from .offpolicy import DemonstrationSAC
from .rollout import Evaluation, evaluate

Arm = Literal["sparse", "shaped"]
ARMS: tuple[Arm, ...] = ("sparse", "shaped")


@dataclass(frozen=True)
class OneShotSettings:
    """What a run depends on; written to its config.json."""

    task: str = "hand-insert-v3"
    """Meta-World task."""
    seed: int = 0
    """Of the demonstration's instance, the adaptation, both learners and their instances."""
    rollouts: int = 150
    """Online episodes per arm."""
    evaluation_episodes: int = 50
    """Fresh instances each policy is evaluated on."""
    adaptation_steps: int = 200
    """Gradient steps on the demonstration and the replay sample."""
    gamma: float = 0.98
    """Discount per decision, of learner and shaping alike."""
    shaping_weight: float = 0.1
    """Factor of the potential; see docs/log.md for what larger ones did."""
    pessimism: float = 0.0
    """Standard deviations of spread subtracted from the potential."""
    checkpoint_every: int = 10
    """Rollouts between checkpoints; an interruption from outside loses at most these."""


class ActionLog(gym.Wrapper):
    """Remembers the last finished episode as (instance seed, actions): enough to play it back exactly."""

    def __init__(self, env: MetaWorldEnv) -> None:
        super().__init__(env)
        self.finished: tuple[int | None, np.ndarray] | None = None
        self._seed: int | None = None
        self._actions: list[np.ndarray] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin a new episode."""
        self._seed, self._actions = seed, []
        return super().reset(seed=seed, options=options)

    def step(self, action: np.ndarray) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Act and remember."""
        self._actions.append(np.array(action))
        result = super().step(action)
        if result[2] or result[3]:
            self.finished = self._seed, np.stack(self._actions)
        return result


def make_env(task: str, horizon: int, *, views: tuple[str, ...] = ()) -> MetaWorldEnv:
    """The environment of every arm and evaluation."""
    return MetaWorldEnv(task, views=views, horizon=horizon)


def horizon_of(demonstration: Episode) -> int:
    """Decisions a rollout may take: twice what the demonstration took, at least 50."""
    return max(50, 2 * len(demonstration))


def record_demonstration(settings: OneShotSettings, root: Path) -> Episode:
    """One expert episode of the task, written as a LeRobotDataset and read back from it."""
    if not (root / "meta" / "info.json").exists():
        env = make_env(settings.task, 250, views=VIEWS)
        [episode] = demonstrations(env, 1, seed=10_000 + settings.seed)
        env.close()
        EpisodeWriter(root).append(episode)
    [episode] = read_episodes(root, [0])
    return episode


def potential_of(model: GRM, demonstration: Episode, pessimism: float) -> ModelPotential:
    """The GRM as a potential for the demonstration's task, its last frame the goal picture."""
    return ModelPotential(model, demonstration.as_goal(), pessimism=pessimism)


def transitions(demonstration: Episode, settings: OneShotSettings, model: GRM | None) -> Demonstration:
    """The demonstration with the rewards a learner is paid: the task's, shaped where a model is given.

    The demonstration is judged with its own last frame as goal. It is the one clip for which that is no leak: it is
    where the goal comes from.
    """
    rewards = demonstration.rewards[:-1].astype(np.float64)
    terminated = np.zeros(len(rewards), bool)
    terminated[-1] = demonstration.succeeded
    if model is not None:
        potential = potential_of(model, demonstration, settings.pessimism)
        observations = [
            {f"pixels.{name}": images[t] for name, images in demonstration.views.items()}
            for t in range(len(demonstration))
        ]
        phi = np.array(
            [
                (potential.advance if t else potential.reset)([0], [observation]).potential[0]
                for t, observation in enumerate(observations)
            ]
        )
        shaping = settings.shaping_weight * shaping_reward(phi[:-1], phi[1:], terminated, settings.gamma)
        rewards += np.nan_to_num(shaping, nan=0.0)  # an abstention shapes nothing for that transition
    return Demonstration(
        observations=demonstration.state[:-1],
        actions=demonstration.actions[:-1],
        rewards=rewards,
        next_observations=demonstration.state[1:],
        terminated=terminated,
    )


def make_learner_env(settings: OneShotSettings, demonstration: Episode, model: GRM | None) -> tuple[VecEnv, ActionLog]:
    """The arm's environment: state observations, the sparse reward, shaped where a model is given."""
    views = tuple(demonstration.views) if model is not None else ()
    log = ActionLog(make_env(settings.task, horizon_of(demonstration), views=views))
    venv: VecEnv = DummyVecEnv([lambda: log])
    if model is not None:
        potential = potential_of(model, demonstration, settings.pessimism)
        venv = VecPotentialShaping(venv, potential, gamma=settings.gamma, weight=settings.shaping_weight)
    return VecExtractDictObs(venv, "state"), log


def evaluate_policy(policy: Any, settings: OneShotSettings, demonstration: Episode) -> Evaluation:
    """Success on fresh instances, the same ones for every policy of this seed."""
    env = DummyVecEnv([lambda: make_env(settings.task, horizon_of(demonstration))])
    found = evaluate(policy, VecExtractDictObs(env, "state"), episodes=settings.evaluation_episodes, seed=settings.seed)
    env.close()
    return found


def run_arm(
    settings: OneShotSettings,
    arm: Arm,
    folder: Path,
    *,
    on_rollout: Callable[[Rollout], bool | None] = lambda rollout: None,
) -> bool:
    """Train and evaluate one arm, going on from its last checkpoint; True if it got to the end.

    Writes to `folder/<arm>`: rollouts.csv as they happen, a checkpoint, the actions of the last failed and the last
    successful rollout, and evaluation.json at the end.
    """
    own = folder / arm
    own.mkdir(exist_ok=True)
    if (own / "evaluation.json").exists():
        return True
    [demonstration] = read_episodes(folder / "demonstration", [0])
    model = GRM.from_pretrained(folder / "grm") if arm == "shaped" else None
    env, log = make_learner_env(settings, demonstration, model)
    checkpoint = own / "policy"
    if has_checkpoint(checkpoint):
        learner = DemonstrationSAC.load_checkpoint(checkpoint, env)
    else:
        shown = transitions(demonstration, settings, model)
        learner = DemonstrationSAC(env, shown, gamma=settings.gamma, seed=settings.seed)
    before = own / "before.json"
    if not before.exists():
        _write_evaluation(before, evaluate_policy(learner.policy.cloned, settings, demonstration))
    rows = list(read_rollouts(own / "rollouts.csv"))[: learner.rollouts]
    partial = own / "rollouts.csv.partial"  # so that the rows of a resumed run are there whenever it is killed
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*Rollout.__dataclass_fields__], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(own / "rollouts.csv")
    with (own / "rollouts.csv").open("a", newline="") as file:
        writer = csv.DictWriter(file, [*Rollout.__dataclass_fields__], lineterminator="\n")

        def after(rollout: Rollout) -> bool | None:
            writer.writerow(asdict(rollout))
            file.flush()
            if log.finished is not None:
                seed, actions = log.finished
                name = "last_success.npz" if rollout.success else "last_failure.npz"
                np.savez(own / name, seed=np.array(seed), actions=actions, number=np.array(rollout.number))
            if rollout.number % settings.checkpoint_every == 0:
                learner.save_checkpoint(checkpoint)
            return on_rollout(rollout)

        learner.learn_rollouts(settings.rollouts - learner.rollouts, after)
    learner.save_checkpoint(checkpoint)
    env.close()
    if learner.rollouts < settings.rollouts:
        return False
    _write_evaluation(own / "evaluation.json", evaluate_policy(learner, settings, demonstration))
    return True


def run_arms(settings: OneShotSettings, folder: Path, *, on_rollout: Callable[[Arm, Rollout], None]) -> None:
    """Train and evaluate both arms at once, each in a process of its own on one core.

    Ctrl-C lets the rollouts in flight finish, saves, and raises KeyboardInterrupt. Raises `GrmError` if an arm failed.
    """
    context = multiprocessing.get_context("spawn")
    reports: Any = context.Queue()
    stop = context.Event()
    processes = [context.Process(target=_arm_process, args=(settings, arm, folder, reports, stop)) for arm in ARMS]
    ends: dict[Arm, bool | str] = {}

    def drain() -> None:
        """Pass on what has been reported, until everybody has ended."""
        while any(process.is_alive() for process in processes) or not reports.empty():
            try:
                arm, report = reports.get(timeout=0.2)
            except queue.Empty:
                continue
            if isinstance(report, Rollout):
                on_rollout(arm, report)
            else:
                ends[arm] = report

    # Children start deaf to Ctrl-C, which a terminal sends to all: the parent decides, and they finish their rollout.
    heard = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        for process in processes:
            process.start()
    finally:
        signal.signal(signal.SIGINT, heard)
    try:
        drain()
    except KeyboardInterrupt:
        stop.set()
        drain()
        raise
    for process, arm in zip(processes, ARMS, strict=True):
        report = ends.get(arm, f"it died with exit status {process.exitcode}")
        if isinstance(report, str):
            raise GrmError(f"the {arm} arm did not finish: {report}; go on with --resume")


def _arm_process(settings: OneShotSettings, arm: Arm, folder: Path, reports: Any, stop: Any) -> None:
    torch.set_num_threads(1)

    def on_rollout(rollout: Rollout) -> bool | None:
        reports.put((arm, rollout))
        return False if stop.is_set() else None

    try:
        reports.put((arm, run_arm(settings, arm, folder, on_rollout=on_rollout)))
    except (GrmError, OSError) as error:
        reports.put((arm, str(error)))


def read_rollouts(path: Path) -> Iterator[dict[str, str]]:
    """Rows of a rollouts.csv; none if there is no such file yet."""
    if path.exists():
        with path.open(newline="") as file:
            yield from csv.DictReader(file)


def read_curve(folder: Path, arm: Arm) -> Curve | None:
    """The arm's learning curve so far."""
    rows = list(read_rollouts(folder / arm / "rollouts.csv"))
    if not rows:
        return None
    return Curve(
        arm=arm,
        rollout=np.array([int(row["number"]) for row in rows]),
        success=np.array([float(row["success"] == "True") for row in rows]),
    )


def read_evaluation(folder: Path, arm: Arm, name: Literal["before", "evaluation"]) -> float | None:
    """Success rate of the cloned policy before training, or of the trained one, if it is known yet."""
    path = folder / arm / f"{name}.json"
    return float(json.loads(path.read_text())["success_rate"]) if path.exists() else None


def play_back(model: GRM, demonstration: Episode, task: str, recording: Path, title: str, size: int = 128) -> Clip:
    """A recorded rollout, simulated again action by action, judged and pictured larger than the GRM sees it."""
    with np.load(recording, allow_pickle=False) as data:
        seed, actions, number = int(data["seed"]), data["actions"], int(data["number"])
    return _clip(model, demonstration, task, seed, list(actions), f"{title} (number {number})", size)


def expert_clip(model: GRM, demonstration: Episode, task: str, seed: int, size: int = 128) -> Clip:
    """The expert on an instance that is not the demonstration's."""
    return _clip(model, demonstration, task, seed, None, "The expert, on another instance", size)


def _clip(
    model: GRM, demonstration: Episode, task: str, seed: int, actions: list[np.ndarray] | None, title: str, size: int
) -> Clip:
    env = make_env(task, horizon_of(demonstration), views=tuple(demonstration.views))
    pictures = Cameras(env, tuple(demonstration.views), height=size, width=size)
    potential = ModelPotential(model, demonstration.as_goal())
    carry = model.start(demonstration.as_goal())
    observation, _ = env.reset(seed=seed)
    frames, judgements, truth, done, step = [], [], [], False, 0
    success: list[float] = []
    while True:
        frames.append(pictures.render())
        [carry], [judgement] = model.extend([carry], [[potential.to_step(observation)]])
        judgements.append(judgement)
        success.append(float(judgement.success[0]))
        truth.append(env.true_progress())
        if done:
            break
        action = env.expert_action() if actions is None else actions[step]
        observation, _, terminated, truncated, _ = env.step(action)
        step += 1
        done = terminated or truncated
    outcome = env.succeeded
    pictures.close()
    env.close()
    return Clip(
        title=title,
        views={name: np.stack([frame[name] for frame in frames]) for name in demonstration.views},
        rate_hz=80 / env.action_repeat,
        potential=np.concatenate([j.potential for j in judgements]),
        spread=np.concatenate([j.spread for j in judgements]),
        judged=np.concatenate([j.judged for j in judgements]),
        outcome=outcome,
        truth=np.array(truth),
        success_probability=np.array(success),
    )


def write_config(folder: Path, settings: OneShotSettings, extra: dict[str, Any], *, resume: bool) -> None:
    """Write config.json, or check that a run to resume has these settings."""
    path = folder / "config.json"
    if resume:
        if not path.exists():
            raise CheckpointError(f"{folder} holds no config.json; expected a folder that `grm demo` began")
        try:
            found = dict(json.loads(path.read_text())["settings"])
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} cannot be read ({error!r}); expected what `grm demo` wrote there") from error
        changed = [key for key, value in asdict(settings).items() if found.get(key) != value]
        if changed:
            raise CheckpointError(f"{folder} was begun with other {', '.join(changed)}; resume with the same settings")
        return
    try:
        path.write_text(json.dumps({"settings": asdict(settings), **extra}, indent=2) + "\n")
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}); choose another output folder") from error


def add_seconds(folder: Path, seconds: float) -> float:
    """Add this session's wall-clock time to minutes.json; returns all sessions' seconds together."""
    path = folder / "minutes.json"
    total = seconds + (60 * json.loads(path.read_text())["minutes"] if path.exists() else 0.0)
    path.write_text(json.dumps({"minutes": total / 60}) + "\n")
    return total


def write_metrics(folder: Path) -> None:
    """Both arms' rollouts in one metrics.csv."""
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["arm", *Rollout.__dataclass_fields__], lineterminator="\n")
        writer.writeheader()
        for arm in ARMS:
            writer.writerows({"arm": arm, **row} for row in read_rollouts(folder / arm / "rollouts.csv"))


def _write_evaluation(path: Path, evaluation: Evaluation) -> None:
    content = {
        "success_rate": evaluation.success_rate,
        "success": evaluation.success.tolist(),
        "length": evaluation.length.tolist(),
    }
    partial = path.with_suffix(".partial")  # its existence says that the arm is done: whole or not at all
    partial.write_text(json.dumps(content) + "\n")
    partial.replace(path)
