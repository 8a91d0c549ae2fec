"""The arms of the one-shot experiment, as data: each is one answer to "what is the learner paid?".

Everything else is the same for all of them: the demonstration, the learner, its inputs, its seed, the instances. The
GRM of every arm stays as it was adapted: none is refitted while the learner learns, except by a person's answers.
"""

from dataclasses import dataclass, replace
from typing import Literal

from envs.metaworld import VIEWS
from grm.errors import TaskError

from .gold import STABLE_STEPS, SUCCESS_THRESHOLD


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """What a learner is paid, and what it sees."""

    name: str
    about: str
    """In plain words, for a page."""
    learns: bool = True
    """False: the cloned policy is evaluated and no rollout is made."""
    gold: Literal["environment", "head", "classifier"] = "environment"
    """Who says that the task is done, pays 1 for it and ends the episode: the simulator, the GRM's success head, or a
    classifier trained on the demonstration alone."""
    potential: Literal["none", "grm", "dense", "prover"] = "none"
    """Φ: nobody's, the GRM's, Meta-World's hand-written dense reward, the scripted prover's progress."""
    combination: Literal["shaping", "difference", "added"] = "shaping"
    """How Φ enters, times the weight: γ Φ' - Φ with Φ' = 0 at the end; Φ' - Φ with neither; Φ' itself."""
    use: Literal["elite", "paid", "guide"] = "elite"
    """What the learner does with Φ that shapes: is paid it, and imitates the failures that got furthest as long as
    successes are few; is paid it only; or makes a potential of its own of it and of successes, of these alone where
    there is no Φ."""
    adapted: bool = True
    """Whether the GRM was adapted to the demonstration."""
    aftermath: int = 0
    """Decisions for which the demonstrator went on when it was done (`policies.aftermath`), for the GRM to see."""
    replays: int = 0
    """Blind replays of the demonstration (`policies.blind`) that a person judged and the GRM was adapted with."""
    answers: int = 0
    """How often a person answers the success head, or speaks up (`policies.answers`)."""
    rule: tuple[float, int] = (SUCCESS_THRESHOLD, STABLE_STEPS)
    """P(done) from which on, and for how many decisions in a row, a success is believed."""
    perspective: Literal["all", "incremental", "forward", "backward"] = "all"
    """Which of the GRM's perspectives make Φ."""
    inputs: Literal["state", "features"] = "state"
    """What the policy sees: the simulator's state, or what a robot has, its own state and the GRM's view features."""
    views: tuple[str, ...] = ()
    """The cameras the GRM sees, at adaptation and after; all of the demonstration's if empty."""

    @property
    def shapes(self) -> bool:
        """Whether Φ enters so that the best policy stays what it was."""
        return self.potential != "none" and self.combination == "shaping"

    @property
    def guided(self) -> bool:
        """Whether the learner has a potential of its own, if learners have."""
        return self.use == "guide" and self.combination == "shaping"

    @property
    def judged(self) -> bool:
        """Whether a model looks at the pictures."""
        return self.potential == "grm" or self.gold != "environment" or self.inputs == "features"

    @property
    def grm(self) -> str | None:
        """Name of the folder of the adapted GRM it needs, None if it needs none."""
        asked = self.potential == "grm" or self.gold == "head" or self.inputs == "features"
        if not (self.adapted and asked):
            return None
        shown = [f"{name}{count}" for name, count in (("after", self.aftermath), ("replays", self.replays)) if count]
        return "-".join(("grm", *self.views, *shown))


CLONED = Arm(name="cloned", about="behaviour-cloned from the demonstration, before any rollout", learns=False)
SPARSE = Arm(name="sparse", about="the task's own reward")
GRM_SHAPED = Arm(name="grm", about="the task's own reward, shaped by the GRM", potential="grm")
SELF_GUIDED = Arm(name="self_guided", about="the task's own reward; guided by what it saw succeed", use="guide")
DENSE = Arm(name="dense", about="shaped by the hand-written dense reward", potential="dense")
PROVER = Arm(name="prover", about="shaped by the prover's progress: a GRM that is always right", potential="prover")
GRM_ONLY = Arm(
    name="grm_only",
    about="no task reward: the GRM says when it is done",
    gold="head",
    potential="grm",
    use="guide",  # what is paid can be taken back (`DemonstrationSAC.retract`)
)
GRM_ONLY_REPLAYS = replace(
    GRM_ONLY,
    name="grm_only_replays",
    about="no task reward: a GRM says when it is done that was also told how five blind replays ended",
    replays=5,
)
GRM_ONLY_ASKED = replace(
    GRM_ONLY_REPLAYS,
    name="grm_only_asked",
    about="no task reward: the GRM says when it is done; a person puts it right, or says yes, twenty times",
    aftermath=40,
    answers=20,
    rule=(0.5, 5),  # `benchmarks/results/success_threshold_asked.json`
)
GRM_ONLY_ASKED_40 = replace(
    GRM_ONLY_ASKED,
    name="grm_only_asked_40",
    about="no task reward: the GRM says when it is done; a person puts it right, or says yes, forty times",
    answers=40,
)
CLASSIFIER = Arm(name="classifier", about="no task reward: a classifier says when it is done", gold="classifier")

MAIN = (
    CLONED,
    SPARSE,
    GRM_SHAPED,
    DENSE,
    GRM_ONLY,
    GRM_ONLY_REPLAYS,
    GRM_ONLY_ASKED,
    CLASSIFIER,
    SELF_GUIDED,
    PROVER,
    GRM_ONLY_ASKED_40,
)
"""The questions of the benchmark, the most important first."""
FEATURES = tuple(
    replace(arm, name=f"{arm.name}_features", about=f"{arm.about}; acts on view features", inputs="features")
    for arm in (
        CLONED,
        SPARSE,
        replace(GRM_SHAPED, about="the task's own reward, guided by the GRM", use="guide"),
        GRM_ONLY,
    )
)
"""The same questions to a policy that sees what a robot sees, guided as a session's is."""
ABLATIONS = (
    Arm(name="grm_zero_shot", about="the GRM without adaptation", potential="grm", adapted=False),
    Arm(name="grm_incremental", about="the GRM's hops added up", potential="grm", perspective="incremental"),
    Arm(name="grm_forward", about="the GRM's hop from the start", potential="grm", perspective="forward"),
    Arm(name="grm_backward", about="the GRM's hop from the goal", potential="grm", perspective="backward"),
    Arm(name="grm_single_view", about="the GRM with one camera", potential="grm", views=VIEWS[:1]),
    Arm(name="grm_paid", about="the GRM's potential paid, and no failure imitated", potential="grm", use="paid"),
    Arm(name="grm_guided", about="the task's own reward, guided by the GRM", potential="grm", use="guide"),
    Arm(name="grm_difference", about="the naive difference of Φ added", potential="grm", combination="difference"),
    Arm(name="grm_added", about="Φ itself added to the reward", potential="grm", combination="added"),
)
"""What each part of the GRM, and of the way it enters, is worth."""
GUIDED = (
    replace(DENSE, name="dense_guided", about="guided by the hand-written dense reward", use="guide"),
    replace(PROVER, name="prover_guided", about="guided by the prover's progress", use="guide"),
)
"""What others' potentials are worth to a learner that makes its own of them."""
ARMS = (*MAIN, *FEATURES, *ABLATIONS, *GUIDED)


def arm_named(name: str) -> Arm:
    """Raises `TaskError` if there is none."""
    for arm in ARMS:
        if arm.name == name:
            return arm
    raise TaskError(f"unknown arm {name!r}; expected one of {', '.join(arm.name for arm in ARMS)}")
