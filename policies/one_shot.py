"""One demonstration in, a trained policy out: the experiment behind `grm rl` and `grm demo`.

A run has one task and one seed. It has one expert demonstration, a GRM adapted to it where an arm needs one, and the
arms (`policies.arms`): the same learner each, with the same seed, the same instances and the same number of rollouts,
paid differently. All are evaluated on the same fresh instances. Everything is written as it happens, and a run that
was interrupted, or killed, goes on where it was: at most the rollout that was under way is made again.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecExtractDictObs

from envs.experts import demonstrations
from envs.metaworld import VIEWS, MetaWorldEnv
from grm.data.episodes import Episode
from grm.data.lerobot import EpisodeWriter, read_episodes
from grm.data.replay import read_replay
from grm.errors import CheckpointError, OutputError, TraceError
from grm.fusion import Fuser, OnePerspective
from grm.models.checkpoint import locate
from grm.models.multiview import GRM, packaged_checkpoint
from grm.train import Trainer, adapt
from shaping import PotentialShaping, shaping_reward

from .aftermath import go_on
from .answers import Lessons, Witness
from .arms import Arm
from .blind import blind_replays
from .checkpoint import has_checkpoint, saved_rollouts
from .classifier import fit_classifier
from .collecting import Rollout
from .demonstration import Demonstration
from .features import VecViewFeatures
from .gold import Answer, JudgedSuccess, StableSuccess
from .log import RolloutLog, arm_folder
from .naive import NaiveReward, naive_reward
from .offpolicy import DemonstrationSAC
from .onlookers import (
    ClassifierOnlooker,
    DenseOnlooker,
    ModelOnlooker,
    Onlooker,
    Opinion,
    ProverOnlooker,
    Watched,
    look_at,
    play_back,
)
from .rollout import Evaluation, evaluate
from .stopwatch import Stopwatch


@dataclass(frozen=True)
class OneShotSettings:
    """What a run depends on; written to its config.json."""

    task: str = "hand-insert-v3"
    """Meta-World task."""
    seed: int = 0
    """Of the demonstration's instance, the adaptation, the learners and their instances."""
    rollouts: int = 150
    """Online episodes per arm."""
    evaluation_episodes: int = 50
    """Fresh instances each policy is evaluated on."""
    model: str = ""
    """Checkpoint to adapt: a folder, a Hub id, or nothing for the packaged one."""
    demo: str = ""
    """LeRobotDataset to take the demonstration from; nothing for the scripted expert's."""
    episode: int = 0
    """Which of its episodes."""
    adaptation_steps: int = 200
    """Gradient steps on the demonstration and the replay sample."""
    gamma: float = 0.98
    """Discount per decision, of learner and shaping alike."""
    shaping_weight: float = 0.1
    """Factor of the potential; see docs/log.md for what larger ones did."""
    guidance: float = 1.0
    """Weight of the potential a guided arm's learner makes of what it was told (`policies.guide`); such an arm's reward
    is not shaped. With 0 guided arms are paid like the others."""
    guided_gamma: float = 0.9
    """Discount of a guided learner's own."""
    elite: int = 5
    """Failures that may stand for successes that are missing, where an arm's Φ shapes (`DemonstrationSAC`)."""
    pessimism: float = 0.0
    """Standard deviations of spread subtracted from the potential."""
    checkpoint_every: int = 1
    """Rollouts between checkpoints; who is killed loses at most these."""


class ActionLog(gym.Wrapper):
    """Remembers the last finished episode: enough to play it back exactly, and what became of it."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.finished: tuple[int | None, np.ndarray] | None = None
        """Instance seed and actions."""
        self.true_success = False
        """Whether the simulator saw a success in it."""
        self.abstained = 0
        """Of its transitions, those on which the potential abstained."""
        self.answer: Answer | None = None
        """What a person said at its end; None where nobody spoke."""
        self._seed: int | None = None
        self._actions: list[np.ndarray] = []
        self._abstained = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin a new episode."""
        self._seed, self._actions, self._abstained = seed, [], 0
        return super().reset(seed=seed, options=options)

    def step(self, action: np.ndarray) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Act and remember."""
        self._actions.append(np.array(action))
        result = super().step(action)
        _, _, terminated, truncated, info = result
        self._abstained += not info.get("judged", True)
        if terminated or truncated:
            self.finished = self._seed, np.stack(self._actions)
            self.true_success = bool(info.get("true_success", info["success"]))
            self.abstained, self.answer = self._abstained, info.get("answer")
        return result


class TimedEnv(MetaWorldEnv):
    """Meta-World with a stopwatch: what simulating costs, and what rendering."""

    def __init__(self, stopwatch: Stopwatch, *args: Any, **kwargs: Any) -> None:
        self.stopwatch = stopwatch
        super().__init__(*args, **kwargs)

    def reset(self, **kwargs: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """See `MetaWorldEnv`."""
        with self.stopwatch("simulate"):
            return super().reset(**kwargs)

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """See `MetaWorldEnv`."""
        with self.stopwatch("simulate"):
            return super().step(action)

    def render_views(self) -> dict[str, np.ndarray]:
        """See `MetaWorldEnv`."""
        with self.stopwatch("render"):
            return super().render_views()


def make_env(task: str, horizon: int, *, views: tuple[str, ...] = ()) -> MetaWorldEnv:
    """The environment of demonstrations, at their default pace and picture size."""
    return MetaWorldEnv(task, views=views, horizon=horizon)


def world_of(demonstration: Episode, arm: Arm | None = None, stopwatch: Stopwatch | None = None) -> MetaWorldEnv:
    """An environment as the demonstration was recorded in: its task, picture size and pace.

    With the pictures and the state an arm asks for; without one, simulator state and no pictures.
    """
    height, width = next(iter(demonstration.views.values())).shape[1:3]
    return TimedEnv(
        stopwatch or Stopwatch(),
        demonstration.task,
        views=(arm.views or tuple(demonstration.views)) if arm is not None and arm.judged else (),
        height=height,
        width=width,
        horizon=horizon_of(demonstration),
        action_repeat=round(80 / demonstration.rate_hz),
        state="relative" if arm is None or arm.inputs == "state" else "proprioception",
    )


def horizon_of(demonstration: Episode) -> int:
    """Decisions a rollout may take: twice what the demonstration took, at least 50."""
    return max(50, 2 * len(demonstration))


def record_demonstration(settings: OneShotSettings, root: Path) -> Episode:
    """The run's one demonstration, an expert's or the one in `settings.demo`, as written to and read from `root`.

    Raises `TraceError` for one that is of another task, does not end in success or has no pictures.
    """
    if not (root / "meta" / "info.json").exists():
        if settings.demo:
            [episode] = read_episodes(locate_dataset(settings.demo), [settings.episode])
            check_demonstration(episode, settings)
        else:
            env = make_env(settings.task, 250, views=VIEWS)
            [episode] = demonstrations(env, 1, seed=10_000 + settings.seed)
            env.close()
        EpisodeWriter(root).append(episode)
    [episode] = read_episodes(root, [0])
    return episode


def locate_dataset(source: str) -> Path:
    """The folder of a LeRobotDataset; raises `TraceError` if there is none."""
    if not (Path(source) / "meta" / "info.json").exists():
        raise TraceError(f"{source} holds no meta/info.json; expected the folder of a LeRobotDataset")
    return Path(source)


def check_demonstration(episode: Episode, settings: OneShotSettings) -> None:
    """Raise `TraceError` unless a policy and a GRM can be started from this episode."""
    which = f"episode {settings.episode} of {settings.demo}"
    if episode.task != settings.task:
        raise TraceError(f"{which} shows {episode.task!r}; expected {settings.task!r}: choose another episode or task")
    if not episode.succeeded:
        raise TraceError(
            f"{which} does not end in success; expected a demonstration that shows the task done: choose another "
            f"episode, or cut it after its success"
        )
    if not episode.views:
        raise TraceError(f"{which} has no pictures; expected at least one camera: collect it with views")
    size = make_env(settings.task, 1).observation_space["state"].shape[0]
    if episode.state.shape[1] != size or round(80 / episode.rate_hz) < 1:
        raise TraceError(
            f"{which} has states of {episode.state.shape[1]} numbers at {episode.rate_hz:g} Hz; expected {size} "
            f"numbers, as `grm collect` records them, at 80 Hz or a whole fraction of it"
        )


def prepare(
    settings: OneShotSettings, arm: Arm, folder: Path, *, after_step: Callable[[Trainer], None] = lambda trainer: None
) -> Episode:
    """What the arm needs before its first rollout: the demonstration, returned, and its adapted GRM.

    What is there already is left as it is.
    """
    demonstration = record_demonstration(settings, folder / "demonstration")
    if arm.grm is not None and not (folder / arm.grm / "config.json").exists():
        _adapt(settings, arm, demonstration, folder / arm.grm, after_step=after_step)
    return demonstration


def _adapt(
    settings: OneShotSettings,
    arm: Arm,
    demonstration: Episode,
    folder: Path,
    *,
    after_step: Callable[[Trainer], None] = lambda trainer: None,
) -> None:
    """Write the arm's GRM to `folder`: the packaged one, adapted to the demonstration and to what else it is shown."""
    source = locate(settings.model, packaged_checkpoint())
    shown, told = _shown_and_told(settings, arm, demonstration)
    steps, seed = settings.adaptation_steps, settings.seed
    old, replay = GRM.from_pretrained(source), list(read_replay(source))
    new = adapt(old, shown, replay, rollouts=told, steps=steps, seed=seed, after_step=after_step)
    card = {"from": settings.model or "packaged", "steps": steps, "seed": seed, "views": list(shown.views)}
    card |= {"done": int(shown.success.sum()), "replays": [one.succeeded for one in told]}
    partial = folder.with_name(f"{folder.name}.partial")
    new.save_pretrained(partial, card)
    partial.replace(folder)


def _shown_and_told(settings: OneShotSettings, arm: Arm, demonstration: Episode) -> tuple[Episode, list[Episode]]:
    """What the arm's GRM is adapted to: the demonstration as it sees it, and the rollouts it is told the end of."""
    shown = seen_by(arm, demonstration)
    if not (arm.replays or arm.aftermath):
        return shown, []
    world = world_of(demonstration, replace(arm, inputs="state"))
    told = blind_replays(world, shown, arm.replays, seed=settings.seed)
    shown = go_on(world, shown, arm.aftermath, seed=settings.seed)
    world.close()
    return shown, told


def _witness(
    arm: Arm, settings: OneShotSettings, demonstration: Episode, onlooker: ModelOnlooker, own: Path, finished: int
) -> Witness:
    """Who answers the arm's head, with what was answered to the rollouts that are finished."""
    shown, told = _shown_and_told(settings, arm, demonstration)
    return Witness(
        onlooker,
        own,
        world_of(demonstration, replace(arm, inputs="state")),
        seen_by(arm, demonstration),
        Lessons(onlooker.model, onlooker.task, [shown, *told]),
        StableSuccess(*arm.rule),
        answers=arm.answers,
        rollouts=settings.rollouts,
        finished=finished,
        seed=settings.seed,
    )


def missing(arm: Arm, folder: Path) -> set[str]:
    """Names of what `prepare` would still have to make for the arm."""
    needs = {"demonstration": "meta/info.json"} | ({} if arm.grm is None else {arm.grm: "config.json"})
    return {name for name, proof in needs.items() if not (folder / name / proof).exists()}


def seen_by(arm: Arm, demonstration: Episode) -> Episode:
    """The demonstration with the views the arm's GRM may see."""
    if not arm.views:
        return demonstration
    absent = [view for view in arm.views if view not in demonstration.views]
    if absent:
        raise TraceError(
            f"the demonstration has no view {absent[0]!r}, which the arm {arm.name!r} looks through; it has "
            f"{', '.join(demonstration.views)}: leave the arm out, or record with that view"
        )
    return replace(demonstration, views={view: demonstration.views[view] for view in arm.views})


def onlooker_of(arm: Arm, settings: OneShotSettings, demonstration: Episode, folder: Path) -> Onlooker | None:
    """Who watches the arm's environment, fresh; None for nobody."""
    if arm.potential == "dense":
        return DenseOnlooker()
    if arm.potential == "prover":
        return ProverOnlooker()
    if arm.gold == "classifier":
        encoder = GRM.from_pretrained(settings.model).network
        return ClassifierOnlooker(fit_classifier(encoder, demonstration, rng=np.random.default_rng(settings.seed)))
    if not arm.judged:
        return None
    fuser: Fuser | None = None if arm.perspective == "all" else OnePerspective(arm.perspective)
    source = settings.model if arm.grm is None else folder / arm.grm
    model = GRM.from_pretrained(source, fuser=fuser)
    task = seen_by(arm, demonstration).as_goal()
    return ModelOnlooker(model, task, views=arm.views, pessimism=settings.pessimism)


def transitions(
    arm: Arm, settings: OneShotSettings, demonstration: Episode, onlooker: Onlooker | None
) -> Demonstration:
    """The demonstration with the rewards the arm's learner is paid.

    Its end is paid and terminates in every arm: that it shows the task done is known, a person says so. The
    demonstration is judged with its own last frame as goal. It is the one clip for which that is no leak: it is where
    the goal comes from.
    """
    rewards = demonstration.rewards[:-1].astype(np.float64)
    terminated = np.zeros(len(rewards), bool)
    terminated[-1] = demonstration.succeeded
    states = demonstration.state
    opinions: list[Opinion] = []
    if onlooker is not None and (arm.inputs == "features" or not arm.judged):
        env = world_of(demonstration, arm)
        states, opinions = play_back(onlooker, demonstration, env)
        env.close()
    elif onlooker is not None:
        opinions = look_at(onlooker, demonstration)
    if arm.inputs == "features":
        states = np.concatenate([states, np.stack([opinion.features for opinion in opinions])], axis=1)
    if arm.potential != "none":
        wrong = [opinion.phi for opinion in opinions if opinion.phi is not None and not 0 <= opinion.phi <= 1]
        if wrong:
            raise TraceError(f"the potential is {wrong[0]} on the demonstration; expected a number in [0, 1]")
        phi = np.array([np.nan if opinion.phi is None else opinion.phi for opinion in opinions])
        if arm.combination != "shaping":
            paid = settings.shaping_weight * naive_reward(arm.combination, phi[:-1], phi[1:])
        else:
            paid = shaping_weight(arm, settings) * shaping_reward(phi[:-1], phi[1:], terminated, settings.gamma)
        rewards += np.nan_to_num(paid, nan=0.0)  # an abstention pays nothing
    return Demonstration(
        observations=states[:-1],
        actions=demonstration.actions[:-1],
        rewards=rewards,
        next_observations=states[1:],
        terminated=terminated,
    )


def shaping_weight(arm: Arm, settings: OneShotSettings) -> float:
    """Factor of the potential as the environment adds it: a guided learner adds its own, and is only told Φ."""
    return 0.0 if settings.guidance and arm.guided else settings.shaping_weight


def make_learner(
    arm: Arm, settings: OneShotSettings, demonstration: Episode, onlooker: Onlooker | None, env: VecEnv
) -> DemonstrationSAC:
    """The arm's learner before its first rollout: the same one in every arm, with what the arm makes of its Φ."""
    return DemonstrationSAC(
        env,
        transitions(arm, settings, demonstration, onlooker),
        gamma=settings.gamma,
        guidance=settings.guidance if arm.guided else 0.0,
        guided_gamma=settings.guided_gamma,
        elite=settings.elite if arm.shapes and arm.use == "elite" else 0,
        seed=settings.seed,
    )


def make_learner_env(
    arm: Arm,
    settings: OneShotSettings,
    demonstration: Episode,
    onlooker: Onlooker | None,
    stopwatch: Stopwatch,
) -> tuple[VecEnv, ActionLog]:
    """The arm's environment: its inputs and its reward. Rendered only where a model looks."""
    world = world_of(demonstration, arm, stopwatch)
    env: gym.Env = world
    if onlooker is not None:
        env = watched = Watched(world, onlooker, stopwatch)
        if arm.gold != "environment":
            env = JudgedSuccess(watched, StableSuccess(*arm.rule))
        if arm.shapes:
            weight = shaping_weight(arm, settings)
            env = PotentialShaping(env, watched.potential(), gamma=settings.gamma, weight=weight)
        elif arm.potential != "none":
            env = NaiveReward(env, watched, arm.combination, settings.shaping_weight)
    log = ActionLog(env)
    return _inputs(arm, log, onlooker), log


def evaluate_policy(
    policy: Any, arm: Arm, settings: OneShotSettings, demonstration: Episode, onlooker: Onlooker | None
) -> Evaluation:
    """True success on fresh instances, the same ones for every policy of this seed; episodes end when it is seen."""
    world = world_of(demonstration, arm if arm.inputs == "features" else None)
    env: gym.Env = world
    if onlooker is not None and arm.inputs == "features":
        env = Watched(world, onlooker, Stopwatch())
    venv = _inputs(arm, env, onlooker)
    found = evaluate(policy, venv, episodes=settings.evaluation_episodes, seed=settings.seed)
    venv.close()
    return found


def _inputs(arm: Arm, env: gym.Env, onlooker: Onlooker | None) -> VecEnv:
    """The flat observations an arm's policy acts on."""
    venv = DummyVecEnv([lambda: env])
    if arm.inputs == "features":
        assert isinstance(onlooker, ModelOnlooker)
        return VecViewFeatures(venv, onlooker.model.network.frame_features)
    return VecExtractDictObs(venv, "state")


def run_arm(
    settings: OneShotSettings,
    arm: Arm,
    folder: Path,
    *,
    onlooker: Callable[[Episode], Onlooker] | None = None,
    on_rollout: Callable[[Rollout], bool | None] = lambda rollout: None,
    tensorboard: bool = False,
) -> bool:
    """Prepare, train and evaluate one arm, going on from its last checkpoint; True if it got to the end.

    `onlooker` makes, of the demonstration, who watches instead of the arm's own one.

    Writes to `arm_folder`: rollouts.csv as they happen, a checkpoint, the actions of the last failed and the last
    successful rollout, and evaluation.json at the end.
    """
    own = arm_folder(folder, arm.name)
    own.mkdir(parents=True, exist_ok=True)
    if (own / "evaluation.json").exists():
        return True
    demonstration = prepare(settings, arm, folder)
    watches = onlooker_of(arm, settings, demonstration, folder) if onlooker is None else onlooker(demonstration)
    stopwatch = Stopwatch()
    checkpoint = own / "policy"
    witness = None
    if arm.answers and isinstance(watches, ModelOnlooker):
        witness = _witness(arm, settings, demonstration, watches, own, saved_rollouts(checkpoint))
    env, actions = make_learner_env(arm, settings, demonstration, watches, stopwatch)
    if has_checkpoint(checkpoint):
        learner = DemonstrationSAC.load_checkpoint(checkpoint, env)
    else:
        learner = make_learner(arm, settings, demonstration, watches, env)
    if not arm.learns:
        env.close()
        _write_evaluation(
            own / "evaluation.json", evaluate_policy(learner.policy.cloned, arm, settings, demonstration, watches)
        )
        return True
    log = RolloutLog(own, learner.rollouts, tensorboard=tensorboard)
    stopwatch.lap()

    def after(rollout: Rollout) -> bool | None:
        assert actions.finished is not None
        seed, taken = actions.finished
        name = "last_success.npz" if rollout.success else "last_failure.npz"
        np.savez(own / name, seed=np.array(seed), actions=taken, number=np.array(rollout.number))
        seconds = {f"{part}_s": round(spent, 4) for part, spent in stopwatch.lap().items()}
        # Before the checkpoint: what is too much is cut when the run resumes, what is missing could not be made up for.
        seen = {"true_success": actions.true_success, "abstained": actions.abstained}
        if witness is not None:
            assert seed is not None
            answer = actions.answer
            retracted = witness.after(rollout.number, seed=seed, actions=taken, success=rollout.success, answer=answer)
            learner.retract(retracted)
            seen |= {"attended": actions.get_wrapper_attr("attended"), "retracted": len(retracted)}
            seen["answer"] = None if answer is None else answer.done_for
            actions.set_wrapper_attr("attended", witness.attends(rollout.number + 1))
        log.write({**asdict(rollout), **seen, **seconds})
        if rollout.number % settings.checkpoint_every == 0:
            with stopwatch("save"):
                learner.save_checkpoint(checkpoint)
        return on_rollout(rollout)

    if witness is not None:
        actions.set_wrapper_attr("attended", witness.attends(learner.rollouts + 1))
    learner.learn_rollouts(settings.rollouts - learner.rollouts, after)
    learner.save_checkpoint(checkpoint)
    log.close()
    env.close()
    if witness is not None:
        witness.close()
    if learner.rollouts < settings.rollouts:
        return False
    _write_evaluation(own / "evaluation.json", evaluate_policy(learner, arm, settings, demonstration, watches))
    return True


def read_evaluation(folder: Path, arm: str) -> float | None:
    """Success rate of the arm's policy on fresh instances, if it is known yet."""
    path = arm_folder(folder, arm) / "evaluation.json"
    return float(json.loads(path.read_text())["success_rate"]) if path.exists() else None


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
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"settings": asdict(settings), **extra}, indent=2) + "\n")
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}); choose another output folder") from error


def _write_evaluation(path: Path, evaluation: Evaluation) -> None:
    content = {
        "success_rate": evaluation.success_rate,
        "success": evaluation.success.tolist(),
        "length": evaluation.length.tolist(),
    }
    partial = path.with_suffix(".partial")  # its existence says that the arm is done: whole or not at all
    partial.write_text(json.dumps(content) + "\n")
    partial.replace(path)
