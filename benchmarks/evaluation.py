"""GRMs against the truth: held-out tasks zero-shot and one-shot adapted, training tasks on unseen instances.

Every model (one per training seed) is adapted to one demonstration of every held-out task, the same for all models and
of an instance that is never evaluated; its last frame is the goal picture, zero-shot and one-shot alike. Judged are, in
folders of `--data` with one data set per task:

    held-out         experts and everything off the demonstration (`grm collect`)
    visited          where a learner went (`python -m benchmarks.visited`), if it is there
    failures         failed episodes, if they are there: only first and last frame are judged, for the success head
    demonstrations   the demonstrations; made here

and of `--train-data`, which the models were trained on, the episodes that `grm train` held out, with the last frame of
a training episode as the goal picture; of `--unseen-data`, training tasks too but data nobody was trained on, all
episodes but the first success, whose last frame is the goal picture.

One model on one task is a unit. Its judgements are kept (`units.jsonl` and `units/` of `--data`), so that a run that is
interrupted goes on, and a metric that is changed needs no judging again; delete them after a change of `grm.train`.
"""

import argparse
import functools
import hashlib
import json
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from rich.progress import track

from envs.experts import demonstrations
from envs.metaworld import HELD_OUT, PRECISE, VIEWS, MetaWorldEnv, task_name
from grm.cli.datasets import datasets
from grm.cli.train import Train
from grm.data.decoded import read_decoded
from grm.data.episodes import Episode, require_views
from grm.data.lerobot import EpisodeWriter
from grm.data.replay import FILE, read_replay
from grm.errors import TraceError
from grm.evaluate import FALSE_POSITIVE_RATES, METRICS, Scored, by_task, score, score_all
from grm.fusion import ConsistentFusion, Fuser, LeastFusion, MeanFusion
from grm.metrics import Interval, expected_interval, tpr_at_fpr
from grm.models.checkpoint import locate, read_config
from grm.models.multiview import GRM, KIND, packaged_checkpoint
from grm.reward import Judge
from grm.train import adapt
from grm.workers import end_with_the_parent

from .results import write_result

DEMONSTRATION_SEED = 10_000
"""First instance tried for the demonstration."""
HORIZON = 100
"""Decisions a demonstration may take, at 20 per second."""
SUITES = ("held-out", "visited", "failures")
FUSERS: Mapping[str, Callable[[], Fuser]] = {
    "mean": MeanFusion,
    "consistent": ConsistentFusion,
    "least": LeastFusion,
}

TARGETS: Mapping[str, tuple[str, float]] = {
    "spearman_visited": (">=", 0.80),
    "spearman_off_demo": (">=", 0.80),
    "spearman_train_tasks": (">=", 0.90),
    "voc_plus": (">=", 0.98),
    "voc_minus": (">=", 0.98),
    "kendall_tau": (">=", 0.80),
    "tpr_at_fpr0": (">=", 0.90),
    "falling_f1": (">=", 0.80),
    "wrong_instruction_ratio": ("<=", 0.20),
    "adapt_minutes": ("<=", 2.0),
}
"""What was asked for, before any model was measured; one-shot adapted on held-out tasks where the name says nothing."""
FAILED_EPISODES = 1000
"""Failures at least for `tpr_at_fpr0` to count: among few of them, letting none pass is easy."""
INTERVALS = (
    "mean over tasks of the mean over models; 95 % percentile bootstrap over tasks. tpr_at_fpr*: one threshold per "
    "model for all tasks and suites, mean over models; bootstrap over tasks, which leans upwards, since a resample "
    "holds fewer different failures"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """One model on one task: what is judged in one go. Its result is filed under all of this but the folders."""

    model: Path
    model_hash: str
    """Of the weights and the replay sample."""
    seed: int
    """The model's training seed, also that of the adaptation."""
    fuser: str
    split: str
    """`held-out`, `training` or `unseen`."""
    task: str
    root: Path
    """Of split `held-out` the folder of the suites, else the task's data set."""
    steps: int
    """Of adaptation; 0 on training tasks."""
    data_hash: str
    """Of the data sets that go into it."""

    @property
    def key(self) -> str:
        """The name its result is filed under."""
        known = {name: value for name, value in asdict(self).items() if name not in ("model", "root")}
        return f"{self.task}-{hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]}"


def suites_of(task: str, data: Path) -> dict[str, Path]:
    """The data sets of a held-out task that are there, by suite."""
    found = {suite: data / suite / task for suite in SUITES if (data / suite / task / "meta" / "info.json").exists()}
    if "held-out" not in found:
        raise TraceError(
            f"{data / 'held-out' / task} is no data set; expected experts and episodes off the demonstration: "
            f"`grm collect --out {data / 'held-out'} --task held-out precise --episodes 6 --off-demonstration 36 "
            f"--action-repeat 4 --horizon 50 --label-every 5 --seed 500000`"
        )
    return found


def demonstration_of(task: str, data: Path, cache: Path) -> Episode:
    """The one demonstration of a held-out task, made with the first call."""
    root = data / "demonstrations" / task
    if not (root / "meta" / "info.json").exists():
        env = MetaWorldEnv(task, views=VIEWS, horizon=HORIZON, action_repeat=4)
        try:
            [episode] = demonstrations(env, 1, seed=DEMONSTRATION_SEED)
        finally:
            env.close()
        EpisodeWriter(root).append(episode)
    [episode] = read_decoded(root, cache)
    return episode


def prepare(task: str, data: Path, cache: Path) -> None:
    """Make the demonstration and decode the suites, once for all models.

    Raises `TraceError` if the demonstration's own instance is among the experts to be judged.
    """
    shown = demonstration_of(task, data, cache)
    for suite, root in suites_of(task, data).items():
        for episode in read_decoded(root, cache):
            if suite == "held-out" and episode.behaviour == "expert" and episode.seed == shown.seed:
                raise TraceError(
                    f"{root} has an expert on instance {shown.seed}, which is the demonstration's; expected others: "
                    f"collect it again with another --seed"
                )


def validation_split(model: Path, folders: Sequence[Path]) -> dict[Path, tuple[int, int]]:
    """Of each data set in `folders` (r, n): `grm train` held out of this model the episodes i with i mod n = r.

    Read from the command on the model's card, and on those of the models it went on from, which may have been trained
    on other data. Raises `TraceError` if the model is of other data, saw all of it, or an earlier one saw what a later
    one held out.
    """
    card = read_config(model, KIND)["card"]
    split = _held_out(card)
    for root in datasets(folders):
        if root.resolve() not in split:
            raise TraceError(
                f"{model} was trained by {card.get('command')!r}, which holds no episode of {root} out; expected a "
                f"model of `grm train --data` with {root} and episodes for validation: name its data with "
                f"--train-data, or nothing after it to leave training tasks out"
            )
    earlier = card.get("from")
    while earlier:
        seen = [root for root in datasets(folders) if _names(earlier, root)]
        held = _held_out(earlier) if seen else {}
        for root in seen:
            if held.get(root.resolve()) != split[root.resolve()]:
                raise TraceError(
                    f"{model} goes on from a model of {earlier.get('command')!r}, which held other episodes of {root} "
                    f"out; expected the same --data in the same order and the same --validation: train it so, or "
                    f"leave training tasks out with --train-data and nothing after it"
                )
        earlier = earlier.get("from")
    return {root: split[root.resolve()] for root in datasets(folders)}


def require_unseen(model: Path, folders: Sequence[Path]) -> None:
    """Raise `TraceError` if the command of the model, or of one it went on from, names one of these data sets."""
    card: Mapping | None = read_config(model, KIND)["card"]
    while card:
        for root in datasets(folders):
            if _names(card, root):
                raise TraceError(
                    f"{root} is data of {card.get('command')!r}, which {model} comes from; expected data nobody was "
                    f"trained on: name it with --train-data, or collect some with another --seed"
                )
        card = card.get("from")


def _options(card: Mapping) -> dict[str, list[str]]:
    """The words after each option of the command on a card."""
    options: dict[str, list[str]] = {}
    name = ""
    for word in shlex.split(str(card.get("command", ""))):
        if word.startswith("--"):
            name = word
        options.setdefault(name, []).extend([] if word.startswith("--") else [word])
    return options


def _names(card: Mapping, root: Path) -> bool:
    """Whether the data set was among the command's; its folder need not be there any more."""
    folders = {Path(folder).resolve() for folder in _options(card).get("--data", [])}
    return not folders.isdisjoint({root.resolve(), root.resolve().parent})


def _held_out(card: Mapping) -> dict[Path, tuple[int, int]]:
    """By resolved folder (r, n) of the rule by which `grm.cli.train` splits; nothing where it held nothing out."""
    options = _options(card)
    share = float(options.get("--validation", [str(Train.validation)])[0])
    if share == 0:
        return {}
    every = round(1 / share)
    trained = datasets([Path(folder) for folder in options.get("--data", [])])
    return {root.resolve(): ((every - 1 - 7 * number) % every, every) for number, root in enumerate(trained)}


def plan(models: Sequence[Path], tasks: Sequence[str], options: argparse.Namespace) -> list[Unit]:
    """All units, the long ones first."""
    goals = "".join(_fingerprint(options.data / "demonstrations" / task) for task in sorted(tasks))
    held, trained = [], []
    for model in models:
        common = {
            "model": model,
            "model_hash": _hash(*(path for name in ("model.safetensors", FILE) if (path := model / name).exists())),
            "seed": int(read_config(model, KIND)["card"].get("seed", 0)),
            "fuser": options.fuser,
        }
        for task in tasks:
            data = goals + "".join(suite + _fingerprint(root) for suite, root in suites_of(task, options.data).items())
            digest = hashlib.sha256(data.encode()).hexdigest()
            held.append(
                Unit(**common, split="held-out", task=task, root=options.data, steps=options.steps, data_hash=digest)
            )
        for root, rule in validation_split(model, options.train_data).items() if options.train_data else ():
            digest = hashlib.sha256(f"{_fingerprint(root)} {rule}".encode()).hexdigest()
            trained.append(Unit(**common, split="training", task=root.name, root=root, steps=0, data_hash=digest))
        require_unseen(model, options.unseen_data)
        for root in datasets(options.unseen_data):
            digest = _fingerprint(root)
            trained.append(Unit(**common, split="unseen", task=root.name, root=root, steps=0, data_hash=digest))
    return held + trained


def measure(unit: Unit, *, tasks: Sequence[str], data: Path, cache: Path) -> dict[str, object]:
    """Judge one unit and file it in `data/units`; returns what belongs into the table beside it."""
    model, replay = _load(unit.model, unit.fuser)
    minutes: dict[str, float] = {}
    if unit.split == "training":
        [(remainder, every)] = validation_split(unit.model, [unit.root]).values()
        episodes = list(read_decoded(unit.root, cache))
        unseen = [episode for i, episode in enumerate(episodes) if i % every == remainder]
        shown = next((e for i, e in enumerate(episodes) if i % every != remainder and e.succeeded), None)
        if shown is None:
            raise TraceError(f"{unit.root} has no success among its training episodes; expected one, for its goal")
        scored = {("zero-shot", "training"): score_all(model, unseen, {unit.task: shown.frames[-1]})}
    elif unit.split == "unseen":
        episodes = list(read_decoded(unit.root, cache))
        goal = next((i for i, episode in enumerate(episodes) if episode.succeeded), None)
        if goal is None:
            raise TraceError(f"{unit.root} has no success among its episodes; expected one, for its goal")
        shown = episodes.pop(goal)
        scored = {("zero-shot", "training"): score_all(model, episodes, {unit.task: shown.frames[-1]})}
    else:
        shown = {task: demonstration_of(task, data, cache) for task in tasks}
        wall, cpu = time.perf_counter(), time.process_time()
        new = adapt(model, shown[unit.task], replay, steps=unit.steps, seed=unit.seed)
        minutes = {
            "adapt_minutes": (time.perf_counter() - wall) / 60,
            "adapt_cpu_minutes": (time.process_time() - cpu) / 60,
        }
        scored = {}
        for arm, judge in (("zero-shot", model), ("one-shot", new)):
            scored |= {(arm, s): found for s, found in _judge(judge, unit.task, shown, data, cache).items()}
    write_scored(data / "units" / f"{unit.key}.npz", scored)
    known = {name: value for name, value in asdict(unit).items() if name != "root"}
    return {"key": unit.key, **known, "model": str(unit.model), **minutes}


def _judge(judge: Judge, task: str, shown: Mapping[str, Episode], data: Path, cache: Path) -> dict[str, list[Scored]]:
    """All suites of one task, as one judge sees them. The wrong goals and instructions are the same for all judges."""
    goals = {name: episode.frames[-1] for name, episode in shown.items()}
    instructions = {name: episode.instruction for name, episode in shown.items()}
    rng = np.random.default_rng(sorted(shown).index(task))
    views, scored = tuple(shown[task].views), {}
    for suite, root in suites_of(task, data).items():
        scored[suite] = []
        for episode in read_decoded(root, cache):
            require_views(episode, views)
            episode = replace(episode, views={name: episode.views[name] for name in views})
            if suite == "failures":
                nobody_knows = np.full(len(episode), np.nan, np.float32)
                found = score(judge, replace(episode, progress=nobody_knows), goals[task], stride=len(episode))
            else:
                [found] = score_all(judge, [episode], goals, instructions=instructions, rng=rng)
            scored[suite].append(replace(found, episode=replace(found.episode, views={})))
    return scored


_PER_FRAME = ("potential", "spread", "truth", "success")
_PER_EPISODE = ("voc_minus", "voc_both", "wrong_goal", "wrong_instruction", "own_goal")


def write_scored(path: Path, scored: Mapping[tuple[str, str], Sequence[Scored]]) -> None:
    """File judged episodes, by arm and suite, without their pictures: plain arrays."""
    items = [(arm, suite, item) for (arm, suite), found in scored.items() for item in found]
    columns: dict[str, np.ndarray] = {
        "arm": np.array([arm for arm, _, _ in items], str),
        "suite": np.array([suite for _, suite, _ in items], str),
        "task": np.array([item.episode.task for _, _, item in items], str),
        "behaviour": np.array([item.episode.behaviour for _, _, item in items], str),
        "seed": np.array([-1 if item.episode.seed is None else item.episode.seed for _, _, item in items], np.int64),
        "succeeded": np.array([item.episode.succeeded for _, _, item in items], bool),
        "frames": np.array([len(item.potential) for _, _, item in items], np.int64),
    }
    for name in _PER_EPISODE:
        columns[name] = np.array([getattr(item, name) for _, _, item in items], np.float64)
    for name in _PER_FRAME:
        columns[name] = np.concatenate([np.zeros(0), *(getattr(item, name) for _, _, item in items)])
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name("partial-" + path.name)  # so that what has the right name is whole
    np.savez(partial, **columns)
    partial.replace(path)


def read_scored(path: Path) -> dict[tuple[str, str], list[Scored]]:
    """What `write_scored` filed. The episodes have the judged frames' progress and outcome, and nothing else."""
    with np.load(path, allow_pickle=False) as file:
        columns = {name: file[name] for name in file.files}
    ends = np.cumsum(columns["frames"])
    scored: dict[tuple[str, str], list[Scored]] = {}
    for i, end in enumerate(ends):
        length = int(columns["frames"][i])
        frames = {name: columns[name][end - length : end] for name in _PER_FRAME}
        nothing = np.zeros((length, 1), np.float32)
        success = np.zeros(length, bool)
        success[-1] = columns["succeeded"][i]
        episode = Episode(
            task=str(columns["task"][i]),
            instruction="",
            views={},
            rate_hz=20.0,
            state=nothing,
            actions=nothing,
            rewards=nothing[:, 0],
            success=success,
            progress=frames["truth"].astype(np.float32),
            behaviour=str(columns["behaviour"][i]),
            seed=None if columns["seed"][i] < 0 else int(columns["seed"][i]),
        )
        item = Scored(episode=episode, **frames, **{name: float(columns[name][i]) for name in _PER_EPISODE})
        scored.setdefault((str(columns["arm"][i]), str(columns["suite"][i])), []).append(item)
    return scored


def read_finished(data: Path) -> dict[str, dict]:
    """Finished units by key. Takes a line back that a killed run left unfinished."""
    path = data / "units.jsonl"
    if not path.exists():
        return {}
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole)
    lines = [json.loads(line) for line in whole.splitlines()]
    return {line["key"]: line for line in lines if (data / "units" / f"{line['key']}.npz").exists()}


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """What was found: everything `write_result` takes."""

    summary: dict[str, Interval]
    rows: list[dict[str, object]]
    episodes: dict[str, int]
    """Of all tasks together, for one model: by suite, and those that succeeded or failed for `tpr_at_fpr0`."""


def aggregate(units: Sequence[Mapping], data: Path, *, seed: int = 0) -> Table:
    """Finished units (lines of `units.jsonl`) to metrics per model and task, and to their summary: see `INTERVALS`.

    One-shot metrics have their name in `grm.evaluate`, those of the models as they were trained end in `_zero_shot`;
    `spearman_train_tasks` is `spearman_off_demo` of training tasks. What could not be measured is absent.
    """
    rng = np.random.default_rng(seed)
    rows: list[dict[str, object]] = []
    found: dict[str, dict[str, list[float]]] = {}  # metric, task: one number per model
    ends: dict[
        str, dict[tuple[str, int], dict[str, tuple[np.ndarray, np.ndarray]]]
    ] = {}  # arm, model, task: P(done) at the end
    counts: dict[tuple[str, str], dict[str, int]] = {}  # suite, task: of one model; all judge the same

    def note(name: str, task: str, value: float) -> None:
        found.setdefault(name, {}).setdefault(task, []).append(value)

    for unit in units:
        scored, task = read_scored(data / "units" / f"{unit['key']}.npz"), unit["task"]
        about = {"model": unit["model"], "seed": unit["seed"], "split": unit["split"], "task": task}
        timed = {name: unit[name] for name in ("adapt_minutes", "adapt_cpu_minutes") if name in unit}
        for name, minutes in timed.items():
            note(name, task, minutes)
        for arm in dict.fromkeys(arm for arm, _ in scored):
            parts = {suite: items for (other, suite), items in scored.items() if other == arm}
            for suite, items in parts.items():
                counts[suite, task] = {"episodes": len(items), "failed": sum(not i.episode.succeeded for i in items)}
            labelled = [item for suite, items in parts.items() if suite != "failures" for item in items]
            metrics = by_task(labelled).get(task, {})
            every = [item for items in parts.values() for item in items]
            row = about | {"arm": arm, "episodes": len(every), "failed": sum(not i.episode.succeeded for i in every)}
            rows.append(row | {k: round(v, 4) for k, v in ((timed if arm == "one-shot" else {}) | metrics).items()})
            if unit["split"] != "held-out":
                if "spearman_off_demo" in metrics:
                    note("spearman_train_tasks", task, metrics["spearman_off_demo"])
                continue
            suffix = "" if arm == "one-shot" else "_zero_shot"
            for name, value in metrics.items():
                if name not in FALSE_POSITIVE_RATES:
                    note(name + suffix, task, value)
            done = np.array([item.success[-1] for item in every if item.episode.succeeded])
            failed = np.array([item.success[-1] for item in every if not item.episode.succeeded])
            ends.setdefault(suffix, {}).setdefault((unit["model_hash"], unit["seed"]), {})[task] = done, failed

    summary = {
        name: expected_interval([float(np.mean(values)) for values in tasks.values()], rng)
        for name, tasks in found.items()
    }
    for suffix, models in ends.items():
        for name, fpr in FALSE_POSITIVE_RATES.items():
            interval = pooled_tpr(list(models.values()), fpr, rng)
            if interval is not None:
                summary[name + suffix] = interval
    order = [*TARGETS, "adapt_cpu_minutes", *METRICS, *(f"{name}_zero_shot" for name in METRICS)]
    pooled = {key: numbers for key, numbers in counts.items() if key[0] != "training"}
    episodes = {
        suite: sum(numbers["episodes"] for (other, _), numbers in counts.items() if other == suite)
        for suite in (*SUITES, "training")
    }
    episodes["failed"] = sum(numbers["failed"] for numbers in pooled.values())
    episodes["succeeded"] = sum(numbers["episodes"] for numbers in pooled.values()) - episodes["failed"]
    return Table({name: summary[name] for name in dict.fromkeys(order) if name in summary}, rows, episodes)


def pooled_tpr(
    models: Sequence[Mapping[str, tuple[np.ndarray, np.ndarray]]], fpr: float, rng: np.random.Generator
) -> Interval | None:
    """True positive rate at one threshold per model for all tasks, mean over models, interval over resampled tasks.

    `models` has of each model, by task, P(done) at the end of what succeeded, and of what failed. None where there is
    no success, or no failure that was judged.
    """
    tasks = sorted({task for model in models for task in model})

    def rate(chosen: Sequence[str]) -> float:
        rates = []
        for model in models:
            done, failed = (np.concatenate([model[t][part] for t in chosen if t in model]) for part in (0, 1))
            known = len(done) > 0 and bool(np.isfinite(failed).any())
            rates.append(tpr_at_fpr(done, failed, fpr) if known else np.nan)
        return float(np.mean(rates))

    value = rate(tasks)
    if np.isnan(value):
        return None
    drawn = [rate([tasks[i] for i in rng.integers(len(tasks), size=len(tasks))]) for _ in range(500)]
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return Interval(value, float(low), float(high))


def verdicts(summary: Mapping[str, Interval], *, failed: int) -> dict[str, str]:
    """`met`, `missed` or `not measured` for each of `TARGETS`; `tpr_at_fpr0` counts from `FAILED_EPISODES` on."""
    verdict = {}
    for name, (relation, target) in TARGETS.items():
        if name not in summary:
            verdict[name] = "not measured"
            continue
        value = summary[name].value
        met = value >= target if relation == ">=" else value <= target
        enough = name != "tpr_at_fpr0" or failed >= FAILED_EPISODES
        verdict[name] = "met" if met and enough else "missed" if enough else f"missed: {failed} failures are too few"
    return verdict


@functools.lru_cache(maxsize=1)
def _load(model: Path, fuser: str) -> tuple[GRM, list[Episode]]:
    return GRM.from_pretrained(model, fuser=FUSERS[fuser]()), list(read_replay(model))


def _hash(*paths: Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _fingerprint(root: Path) -> str:
    """Of a data set: its columns and lengths, and the statistics of what is in them."""
    return _hash(root / "meta" / "info.json", root / "meta" / "stats.json")


def _one_thread() -> None:
    end_with_the_parent()
    torch.set_num_threads(1)
    os.environ["LP_NUM_THREADS"] = "0"  # software rendering would start a thread per core otherwise


def in_processes[A, R](work: Callable[[A], R], items: Sequence[A], jobs: int) -> Iterator[R]:
    """Results as they come, from `jobs` processes; a single job is done in this one."""
    if jobs == 1:
        torch.set_num_threads(1)
        yield from map(work, items)
        return
    with ProcessPoolExecutor(jobs, get_context("spawn"), _one_thread) as pool:
        try:
            for future in as_completed([pool.submit(work, item) for item in items]):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)  # else Ctrl-C would wait for what has not begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[""], help="checkpoints; nothing for the packaged one")
    parser.add_argument("--data", type=Path, default=Path("data/evaluation"))
    parser.add_argument("--train-data", type=Path, nargs="*", default=[Path("data/pretraining/plain")])
    parser.add_argument("--unseen-data", type=Path, nargs="*", default=[], help="training tasks, nobody trained on it")
    parser.add_argument("--tasks", nargs="+", default=[*HELD_OUT, *PRECISE])
    parser.add_argument("--steps", type=int, default=200, help="of adaptation")
    parser.add_argument("--fuser", choices=sorted(FUSERS), default="least")
    parser.add_argument("--cache", type=Path, default=Path("data/decoded"), help="decoded pictures, as of `grm train`")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--name", default="evaluation", help="of the files in benchmarks/results")
    options = parser.parse_args()

    models = [locate(model, packaged_checkpoint()) for model in options.models]
    tasks = [task_name(task) for task in options.tasks]
    getting_ready = functools.partial(prepare, data=options.data, cache=options.cache)
    for _ in track(in_processes(getting_ready, tasks, options.jobs), "demonstrations, pictures", len(tasks)):
        pass
    units = plan(models, tasks, options)
    finished = read_finished(options.data)
    missing = [unit for unit in units if unit.key not in finished]
    work = functools.partial(measure, tasks=tasks, data=options.data, cache=options.cache)
    for line in track(in_processes(work, missing, options.jobs), "models and tasks", len(missing)):
        with (options.data / "units.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        finished[str(line["key"])] = line

    # The folder is where the model is today; the unit may have been judged when it was elsewhere.
    names = {model: given or "packaged" for model, given in zip(models, options.models, strict=True)}
    lines = [finished[unit.key] | {"model": names[unit.model]} for unit in units]
    table = aggregate(lines, options.data)
    verdict = verdicts(table.summary, failed=table.episodes["failed"])
    for name, interval in table.summary.items():
        relation, target = TARGETS.get(name, ("", float("nan")))
        aim = f"{relation} {target:.2f}  {verdict[name]}" if name in TARGETS else ""
        print(f"{name:36} {interval.value:6.3f}  [{interval.low:6.3f}, {interval.high:6.3f}]  {aim}".rstrip())
    for name in (name for name, said in verdict.items() if said == "not measured"):
        print(f"{name:36} not measured")
    path = write_result(
        options.name,
        table.summary,
        seeds=[int(read_config(model, KIND)["card"].get("seed", 0)) for model in models],
        rows=table.rows,
        intervals=INTERVALS,
        targets={n: {"target": " ".join(map(str, TARGETS[n])), "verdict": said} for n, said in verdict.items()},
        episodes=table.episodes,
        models=[model or "packaged" for model in options.models],
        tasks=tasks,
        adaptation_steps=options.steps,
        fuser=options.fuser,
    )
    print(f"{table.episodes['failed']} failed episodes for the false positive rates; {path}")


if __name__ == "__main__":
    main()
