"""Every attack on one judge and one task: the run behind `grm audit`.

Attacks by acting (`envs.attacks`), attacks on the cameras and on the wording (`grm.audit`), and a learner that wants
nothing but Φ (`policies.maximize`). Each finding is written when it is made, so an interruption loses none.
"""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from envs.attacks import ATTACKS, Attempt, RedTeam
from envs.experts import demonstrations
from envs.metaworld import VIEWS, MetaWorldEnv
from grm.audit import (
    CAMERA_ATTACKS,
    AttackSummary,
    CameraAttack,
    Exploit,
    Finding,
    disagreement,
    exploit,
    paraphrases,
    peak,
    skip_to_best,
    summarize,
    worst,
)
from grm.data.episodes import Episode
from grm.data.replay import read_replay
from grm.errors import OutputError
from grm.models.checkpoint import locate
from grm.models.multiview import GRM, packaged_checkpoint
from grm.report.strip import write_strip
from grm.reward import Frame, ProcessReward, Task
from grm.train import adapt

from .maximize import environment_of, maximize

RECORDED = ("undo", "stop-half-way")
"""Attempts whose frames the cameras are attacked with: both half-done, one of them with a better past."""
CURVE_POINTS = 7
"""Frames at which the truth is asked for a picture."""
COLUMNS = ("task", "seed", "attack", "kind", "episode", "gain", "potential", "truth", "frame", "frames", "abstained")


@dataclass(frozen=True)
class AuditSettings:
    """What an audit depends on; written to its red_team.json."""

    task: str = "hand-insert-v3"
    """Meta-World task."""
    demo_seed: int = 0
    """Of the demonstration, and from it of every instance."""
    model: str = ""
    """Checkpoint: a folder, a Hub id, or nothing for the packaged one."""
    adapt: int = 200
    """Gradient steps on the demonstration before the attacks; 0 to attack the model as it is."""
    episodes: int = 3
    """Per attack."""
    rollouts: int = 0
    """Of the learner; 0 to leave it out."""

    @property
    def total(self) -> int:
        """How many steps of progress `run` reports, adaptation left out."""
        return self.episodes * (len(ATTACKS) + len(CAMERA_ATTACKS) + 3) + self.rollouts


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scene:
    """A finding with what was seen."""

    finding: Finding
    frames: Sequence[Frame]
    """As the judge was shown them."""
    potential: Float[np.ndarray, " T"]
    source: Int[np.ndarray, " T"]
    attempt: Attempt

    def truth(self, frame: int) -> float:
        """True progress of what is shown at a frame."""
        return self.attempt.truth(int(self.source[frame]))


def physical_scenes(
    model: ProcessReward[Frame, Any], task: Task, env: MetaWorldEnv, *, episodes: int, seed: int
) -> Iterator[Scene]:
    """Every physical attack on the same `episodes` instances."""
    team = RedTeam(env)
    for attack in ATTACKS:
        for episode in range(episodes):
            attempt = team.run(attack, seed=seed + episode)
            potential = model.judge(task, attempt.frames).potential
            yield _scene(attack, "physical", env, episode, attempt, potential)


def camera_scenes(
    model: ProcessReward[Frame, Any], task: Task, env: MetaWorldEnv, recordings: Sequence[Attempt], *, seed: int
) -> Iterator[Scene]:
    """Every attack on cameras and wording of half-done attempts, and those attempts as they were."""
    for episode, attempt in enumerate(recordings):
        honest = model.judge(task, attempt.frames).potential
        yield _scene("untouched", "control", env, episode, attempt, honest)
        found = peak(honest)
        attacks: dict[str, CameraAttack] = {**CAMERA_ATTACKS, "skip-to-best": skip_to_best(found[0] if found else 0)}
        if len(attempt.frames[0].views) < 2:
            del attacks["swap-cameras"]
        for index, (attack, act) in enumerate(attacks.items()):
            showing = act(attempt.frames, np.random.default_rng([seed, episode, index]))
            potential = model.judge(task, showing.frames).potential
            yield _scene(attack, "perception", env, episode, attempt, potential, showing.frames, showing.source)
        wordings = paraphrases(task.instruction)
        asked = replace(task, instruction=wordings[episode % len(wordings)])
        potential = model.judge(asked, attempt.frames).potential
        scene = _scene("paraphrase", "perception", env, episode, attempt, potential)
        yield replace(scene, finding=replace(scene.finding, exploit=disagreement(potential, honest)))


def learner_scenes(
    model: ProcessReward[Frame, Any],
    task: Task,
    env: MetaWorldEnv,
    demonstration: Episode,
    *,
    rollouts: int,
    keep: int,
    seed: int,
    after_rollout: Callable[[], None] = lambda: None,
) -> Iterator[Scene]:
    """The last `keep` rollouts of a learner that maximises Φ."""
    pursuits = maximize(
        env,
        model,
        task,
        demonstration,
        rollouts=rollouts,
        keep=keep,
        seed=seed,
        on_rollout=lambda rollout: after_rollout(),
    )
    for pursuit in pursuits:
        yield _scene("learner", "learner", env, pursuit.number, pursuit.attempt, pursuit.potential)


def run(
    settings: AuditSettings,
    folder: Path,
    *,
    after_each: Callable[[str], None] = lambda attack: None,
    after_adaptation_step: Callable[[int], None] = lambda step: None,
    about: dict[str, object] | None = None,
) -> list[Finding]:
    """Adapt if asked, attack, write red_team.csv as it goes, then red_team.json and worst.png.

    Raises `OutputError` where the folder cannot be written, and whatever loading and adapting raise.
    """
    model = GRM.from_pretrained(settings.model)
    recorder = MetaWorldEnv(settings.task, views=VIEWS, horizon=250)
    [demonstration] = demonstrations(recorder, 1, seed=10_000 + settings.demo_seed)
    recorder.close()
    if settings.adapt:
        replay = list(read_replay(locate(settings.model, packaged_checkpoint())))
        model = adapt(
            model,
            demonstration,
            replay,
            steps=settings.adapt,
            seed=settings.demo_seed,
            after_step=lambda trainer: after_adaptation_step(trainer.step),
        )
    return attack(model, demonstration, settings, folder, after_each=after_each, about=about)


def attack(
    model: ProcessReward[Frame, Any],
    demonstration: Episode,
    settings: AuditSettings,
    folder: Path,
    *,
    after_each: Callable[[str], None] = lambda attack: None,
    about: dict[str, object] | None = None,
) -> list[Finding]:
    """As `run`, of any process reward, with the demonstration's last frame as the goal picture."""
    findings: list[Finding] = []
    scenes: dict[str, Scene] = {}  # each attack's worst episode; which attack is the worst shows at the end
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "red_team.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            for scene in _scenes(model, demonstration, settings, after_each):
                writer.writerow(_row(scene.finding, settings))
                file.flush()
                findings.append(scene.finding)
                known = scenes.get(scene.finding.attack)
                if known is None or _gain(scene) > _gain(known):
                    scenes[scene.finding.attack] = scene
        top = write_report(findings, settings, folder, about or {})
    except OSError as error:
        raise OutputError(f"{folder} cannot be written ({error.strerror}); choose another output folder") from error
    if top is not None:
        _draw(scenes[top.attack], folder / "worst.png")
    return findings


def write_report(
    findings: Sequence[Finding], settings: AuditSettings, folder: Path, about: dict[str, object]
) -> AttackSummary | None:
    """red_team.json: the settings, a flat summary, and one row per attack, the worst first, which is returned."""
    summaries = summarize(findings)
    top = worst(summaries)
    gains = {name: s.gain for name, s in summaries.items() if s.gain is not None}
    if top is not None and top.gain is not None:
        gains = {"exploit_gain_worst": top.gain, **gains}
    content = {
        **about,
        "settings": asdict(settings),
        "summary": {
            name: {part: round(value, 4) for part, value in gain._asdict().items()} for name, gain in gains.items()
        },
        "worst_attack": top.attack if top else None,
        "attacks": [
            {
                "attack": s.attack,
                "kind": s.kind,
                "episodes": s.episodes,
                "unjudged": s.unjudged,
                "abstained": round(s.abstained, 4),
                "worst": _row(s.worst, settings) if s.worst else None,
            }
            for s in summaries.values()
        ],
    }
    partial = folder / "red_team.json.partial"
    partial.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
    partial.replace(folder / "red_team.json")
    return top


def read_findings(path: Path) -> list[Finding]:
    """The findings of a red_team.csv, also of an interrupted audit's."""
    with path.open(newline="") as file:
        return [_finding(row) for row in csv.DictReader(file)]


def _scenes(
    model: ProcessReward[Frame, Any], demonstration: Episode, settings: AuditSettings, after_each: Callable[[str], None]
) -> Iterator[Scene]:
    task = demonstration.as_goal()
    env = environment_of(demonstration)
    seed = 700_000 + 1_000 * settings.demo_seed
    recorded: dict[str, list[Attempt]] = {name: [] for name in RECORDED}
    for scene in physical_scenes(model, task, env, episodes=settings.episodes, seed=seed):
        if scene.finding.attack in recorded:
            recorded[scene.finding.attack].append(scene.attempt)
        yield scene
        after_each(scene.finding.attack)
    recordings = [recorded[RECORDED[k % len(RECORDED)]][k] for k in range(settings.episodes)]
    for scene in camera_scenes(model, task, env, recordings, seed=seed):
        yield scene
        after_each(scene.finding.attack)
    if settings.rollouts:
        yield from learner_scenes(
            model,
            task,
            env,
            demonstration,
            rollouts=settings.rollouts,
            keep=min(settings.rollouts, max(settings.episodes, 5)),
            seed=settings.demo_seed,
            after_rollout=lambda: after_each("learner"),
        )
    env.close()


def _scene(
    attack: str,
    kind: str,
    env: MetaWorldEnv,
    episode: int,
    attempt: Attempt,
    potential: np.ndarray,
    frames: Sequence[Frame] | None = None,
    source: np.ndarray | None = None,
) -> Scene:
    shown = attempt.frames if frames is None else frames
    where = np.arange(len(shown)) if source is None else source
    found: Exploit | None = exploit(potential, lambda frame: attempt.truth(int(where[frame])))
    finding = Finding(
        attack=attack,
        kind=kind,
        task=env.task,
        episode=episode,
        frames=len(shown),
        abstained=int(np.isnan(potential).sum()),
        exploit=found,
    )
    return Scene(finding=finding, frames=shown, potential=potential, source=where, attempt=attempt)


def _row(finding: Finding, settings: AuditSettings) -> dict[str, object]:
    found = finding.exploit
    numbers: dict[str, object] = {"gain": "", "potential": "", "truth": "", "frame": ""}
    if found is not None:
        numbers = {name: round(getattr(found, name), 4) for name in ("gain", "potential", "truth", "frame")}
    return {
        "task": finding.task,
        "seed": settings.demo_seed,
        "attack": finding.attack,
        "kind": finding.kind,
        "episode": finding.episode,
        **numbers,
        "frames": finding.frames,
        "abstained": finding.abstained,
    }


def _finding(row: dict[str, str]) -> Finding:
    found = None
    if row["gain"]:
        found = Exploit(frame=int(row["frame"]), potential=float(row["potential"]), truth=float(row["truth"]))
    return Finding(
        attack=row["attack"],
        kind=row["kind"],
        task=row["task"],
        episode=int(row["episode"]),
        frames=int(row["frames"]),
        abstained=int(row["abstained"]),
        exploit=found,
    )


def _gain(scene: Scene) -> float:
    return -np.inf if scene.finding.exploit is None else scene.finding.exploit.gain


def _draw(scene: Scene, path: Path) -> None:
    finding, last = scene.finding, len(scene.frames) - 1
    assert finding.exploit is not None
    asked = {*np.linspace(0, last, CURVE_POINTS).round().astype(int).tolist(), finding.exploit.frame}
    views = sorted({name for frame in scene.frames for name in frame.views})
    write_strip(
        path,
        scene.frames,
        scene.potential,
        {frame: scene.truth(frame) for frame in sorted(asked)},
        view="corner" if "corner" in views else views[0],
        title=f"{finding.attack} on {finding.task}: exploit gain {finding.exploit.gain:.2f}",
        marked=finding.exploit.frame,
    )
