r"""Verifiers that write before they judge, over any `LanguageModel`.

    GenORM      one critique of the whole solution, then a forced yes or no                     arXiv 2510.00492
    GenPRM      a critique of each step given the steps before it, then a forced decision       arXiv 2510.00492
    ThinkPRM    one chain "Step i: … \boxed{correct}", until the first error, then yes or no    arXiv 2504.16828

GenPRM of Multi-RM (2510.00492) criticises all steps in one chain and reads only the yes or no: that is `ThinkPRM`'s
`outcome`. The one here asks step by step, which also judges unfinished solutions, and each step once.

A critique that was cut off, or out of which no decision can be read, is invalid: it is counted and left out, and where
all are, the judge abstains. The papers' scripts score it 0 (ThinkPRM) or 0.5 (Multi-RM) instead.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, override

import numpy as np
from jaxtyping import Float

from ..errors import TraceError
from ..reward import Judgement, ProcessReward, ScoredJudgement, ScoreKind, Task, Thought
from .language import Completion, LanguageModel, Usage
from .steps import check_step

_LOOSE_BOX = re.compile(r"\\boxed\s*\{\s*(?:\\text(?:bf)?\s*\{)?\s*\**\s*([A-Za-z]+)\s*\**\s*\}?\s*\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifierFormat:
    """How a verifier is asked and how it answers, for scoring and for training texts alike."""

    instruction: str = (
        "Below are a problem and a solution in numbered steps. Review the steps one after the other, each given the "
        "ones before it. For each, write 'Step i:', a critique, and then 'The step is \\boxed{correct}' or 'The step "
        "is \\boxed{incorrect}'. Stop at the first incorrect step. The solution may be unfinished: review only what is "
        "there."
    )
    problem: str = "Problem:"
    solution: str = "Solution:"
    step: str = "Step {i}:"
    """Begins a step of the solution, and a line of the critique."""
    begin: str = "<think>\n"
    """Where the verifier begins to write."""
    decision: str = "The step is"
    box: tuple[str, str] = ("\\boxed{", "}")
    """Around the decision on a step."""
    right: str = "correct"
    wrong: str = "incorrect"
    end: str = "\n</think>\n"
    question: str = "Is the solution correct?"
    """Followed by the forced `yes` or `no`; no space at its end, for tokenizers put it before the word."""
    yes: str = " Yes"
    no: str = " No"
    again: tuple[str, ...] = ("Let me double check.", "Let's verify again.", "Did I miss something?")
    """Begin a second, third, … round; one phrase twice makes a model copy itself (ThinkPRM)."""

    def prompt(self, task: Task, steps: Sequence[str]) -> str:
        """What the verifier reads. Line breaks inside a step become spaces, so that every line is one step.

        Raises `TraceError` on a blank step.
        """
        lines = [self.instruction, "", f"{self.problem} {task.instruction}", "", self.solution]
        for i, text in enumerate(steps, 1):
            check_step(i - 1, text)
            head = self.head(i)
            flat = re.sub(r"\s*\n\s*", " ", text.strip())
            lines.append(f"{head} {flat.removeprefix(head).strip()}")
        return "\n".join([*lines, "", ""])

    def head(self, number: int) -> str:
        """Beginning of step `number`, from 1."""
        return self.step.replace("{i}", str(number))


WHOLE = VerifierFormat(
    instruction=(
        "Below are a problem and a solution in numbered steps. Think about whether the solution is correct, then "
        "answer the question at the end with Yes or No."
    )
)
"""For a verifier that judges the solution as a whole."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CritiquedJudgement(ScoredJudgement):
    """A judgement with what was written on the way to it."""

    critiques: tuple[str, ...]
    """Raw texts, one per sample."""
    n_samples: int
    """Critiques asked for; of single steps, where steps are judged one by one."""
    n_invalid: int
    """Of these, without a decision that could be read: cut off, unparseable, or longer than the context."""
    n_surplus: int = 0
    """Critiques of steps that the solution does not have; they are left out."""
    outcome: float = math.nan
    """P(the whole solution is right) by the forced yes or no, mean over the valid samples; NaN if there is none."""


class Decisions(NamedTuple):
    """What a chain says of a solution's steps."""

    right: tuple[bool, ...]
    """Of the steps up to and including the first that is called wrong, or of all."""
    surplus: int
    """Critiques of steps that do not exist."""


def normalise(text: str, format: VerifierFormat) -> str:
    r"""One spelling for decisions: `\boxed{\text{Correct}}` becomes `\boxed{correct}`."""
    words = {word.lower(): word for word in (format.right, format.wrong)}
    opening, closing = format.box

    def spell(found: re.Match[str]) -> str:
        word = words.get(found[1].lower())
        return found[0] if word is None else f"{opening}{word}{closing}"

    return _LOOSE_BOX.sub(spell, text) if opening == "\\boxed{" else text


def split_critiques(text: str, format: VerifierFormat | None = None) -> dict[int, str]:
    """The critique of each step by its number from 1; of several under one "Step i:" the last counts."""
    heads = list(_head_pattern(format or VerifierFormat()).finditer(text))
    bounds = [*(head.start() for head in heads), len(text)]
    return {int(head[1]): text[head.end() : end].strip() for head, end in zip(heads, bounds[1:], strict=True)}


def parse_decisions(text: str, steps: int, format: VerifierFormat | None = None) -> Decisions | None:
    """Read the decisions of a chain on a solution of `steps` steps; None if one that is needed is missing.

    Needed are those up to the first "incorrect", or all. A decision belongs to the "Step i:" it stands under, the last
    one there counts; of a chain without any "Step i:" they count in order, and more than there are steps are no answer.
    """
    format = format or VerifierFormat()
    text = normalise(text, format)
    box = _box_pattern(format)
    critiques = split_critiques(text, format)
    if critiques:
        said = {number: box.findall(critique) for number, critique in critiques.items()}
        surplus = sum(number > steps for number in said)
        found = [said.get(number, [])[-1:] for number in range(1, steps + 1)]
    else:
        words = box.findall(text)
        if len(words) > steps:
            return None
        surplus, found = 0, [[word] for word in words] + [[]] * (steps - len(words))
    right: list[bool] = []
    for words in found:
        if not words:
            return None
        right.append(words[0] == format.right)
        if not right[-1]:
            break
    return Decisions(tuple(right), surplus) if right else None


def parse_verdict(text: str, format: VerifierFormat | None = None) -> bool | None:
    """The yes or no after the last time a text asks the format's question; None if there is none."""
    format = format or VerifierFormat()
    _, asked, rest = text.rpartition(format.question)
    words = {format.yes.strip().lower(): True, format.no.strip().lower(): False}
    found = re.match(r"[\s*:]*(\w+)", rest) if asked else None
    return None if found is None else words.get(found[1].lower())


class ThinkPRM:
    """A `Judge` that writes a verification chain, `samples` of them (parallel scaling) in `rounds` (sequential).

    A chain decides on each step up to the first wrong one. Φ is the share of valid chains that found no error so far,
    its spread the standard error of that share; the score of a step, of kind verdict, is the share of chains that call
    it right among those that reached it, NaN where none did. `outcome` is the paper's score: P(yes) after the chain.
    Not a `ProcessReward`: a chain reads the whole solution, and sampled chains of a prefix are others.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        samples: int = 1,
        rounds: int = 1,
        max_tokens: int = 8192,
        temperature: float | None = None,
        seed: int = 0,
        format: VerifierFormat | None = None,
        fits: Callable[[str], bool] | None = None,
    ) -> None:
        """`max_tokens` bounds each round. `temperature` is 0 for one sample and 0.6 for more, if not given.

        `fits` says whether a prompt leaves room in the model's context; where the solution does not the judge abstains,
        and where a chain has grown too long it goes no further round, or is asked for no yes or no. Without it the
        model decides what to do. Raises `TraceError` if there are more rounds than phrases to begin them with.
        """
        self._format = format or VerifierFormat()
        if samples < 1 or not 1 <= rounds <= 1 + len(self._format.again):
            raise TraceError(
                f"samples {samples}, rounds {rounds}; expected at least 1 sample and 1 to "
                f"{1 + len(self._format.again)} rounds, one phrase of the format for each after the first"
            )
        self._model, self._samples, self._rounds = model, samples, rounds
        self._max_tokens, self._seed, self._fits = max_tokens, seed, fits
        self._temperature = temperature if temperature is not None else 0.0 if samples == 1 else 0.6

    @property
    def usage(self) -> Usage:
        """The language model's."""
        return self._model.usage

    def judge(self, task: Task, steps: Sequence[Thought]) -> CritiquedJudgement:
        """Judge one solution. Raises `TraceError` on a blank step."""
        [judgement] = self.judge_all([(task, steps)])
        return judgement

    def judge_all(self, traces: Sequence[tuple[Task, Sequence[Thought]]]) -> list[CritiquedJudgement]:
        """Judge many in one batch. Raises `TraceError` on a blank step."""
        texts = [[thought.text for thought in steps] for _, steps in traces]
        prompts = [self._format.prompt(task, steps) for (task, _), steps in zip(traces, texts, strict=True)]
        asked = [i for i, p in enumerate(prompts) if texts[i] and (self._fits is None or self._fits(p))]
        chains = self._write([prompts[i] for i in asked], [len(texts[i]) for i in asked])
        written = dict(zip(asked, chains, strict=True))
        return [_merge(written.get(i, []), len(steps), self._samples if steps else 0) for i, steps in enumerate(texts)]

    def _write(self, prompts: Sequence[str], lengths: Sequence[int]) -> "list[list[_Chain]]":
        """`samples` chains for each prompt, read round by round."""
        format, owner = self._format, list[int]()
        chains: list[_Chain] = []
        for r in range(self._rounds):
            # Stop strings differ with the length of the solution: a step T + 1 does not exist.
            going = range(len(chains)) if r else range(len(prompts))
            for length in sorted(set(lengths)):
                stop = _strings(format.head(length + 1), format.end, format.question)
                if r == 0:
                    chosen = [i for i in going if lengths[i] == length]
                    asked = [prompts[i] + format.begin for i in chosen]
                    answers = self._generate(asked, stop, self._samples, self._temperature)
                    for i, completions in zip(chosen, answers, strict=True):
                        chains += [
                            _Chain(c.text, parse_decisions(c.text, length, format), c.finish) for c in completions
                        ]
                        owner += [i] * len(completions)
                    continue
                chosen = [k for k in going if lengths[owner[k]] == length and chains[k].finish == "stop"]
                begun = {k: f"{chains[k].text.rstrip()}\n{format.again[r - 1]}\n" for k in chosen}
                prompt_of = {k: prompts[owner[k]] + format.begin + text for k, text in begun.items()}
                chosen = [k for k in chosen if self._fits is None or self._fits(prompt_of[k])]
                asked = [prompt_of[k] for k in chosen]
                answers = self._generate(asked, stop, 1, 0.0)
                for k, [c] in zip(chosen, answers, strict=True):
                    # A round that decides again counts; one that does not leaves what was decided before.
                    decided = parse_decisions(c.text, length, format) or chains[k].decisions
                    chains[k] = _Chain(begun[k] + c.text, decided, c.finish)
        valid = [k for k, chain in enumerate(chains) if chain.decisions is not None]
        endings = [
            prompts[owner[k]] + format.begin + chains[k].text.strip() + format.end + format.question for k in valid
        ]
        says_yes = _says_yes(self._model, endings, format.yes, format.no, self._fits)
        for k, p in zip(valid, says_yes, strict=True):
            chains[k] = chains[k]._replace(yes=float(p))
        return [[chain for chain, o in zip(chains, owner, strict=True) if o == i] for i in range(len(prompts))]

    def _generate(
        self, prompts: Sequence[str], stop: Sequence[str], samples: int, temperature: float
    ) -> list[list[Completion]]:
        if not prompts:
            return []
        return self._model.generate(
            prompts,
            samples=samples,
            max_tokens=self._max_tokens,
            temperature=temperature,
            stop=stop,
            seed=self._seed,
        )


class _Chain(NamedTuple):
    text: str
    decisions: Decisions | None
    finish: str
    yes: float = math.nan


def _merge(chains: Sequence[_Chain], length: int, asked: int) -> CritiquedJudgement:
    valid = [chain.decisions.right for chain in chains if chain.decisions is not None]
    clean = np.array([[i < len(right) and right[i] for i in range(length)] for right in valid], float)
    if valid and length:
        potential = clean.mean(axis=0)
        spread = clean.std(axis=0) / math.sqrt(len(valid))
        reached = np.array([[i < len(right) for i in range(length)] for right in valid]).sum(axis=0)
        score = np.divide(clean.sum(axis=0), reached, out=np.full(length, np.nan), where=reached > 0)
    else:
        potential, spread, score = np.full((3, length), np.nan)
    weighed = [chain.yes for chain in chains if not math.isnan(chain.yes)]
    return CritiquedJudgement(
        potential=potential,
        spread=spread,
        judged=~np.isnan(potential),
        score=score,
        kind=ScoreKind.VERDICT,
        critiques=tuple(chain.text for chain in chains),
        n_samples=asked,
        n_invalid=asked - len(valid),
        n_surplus=sum(chain.decisions.surplus for chain in chains if chain.decisions is not None),
        outcome=float(np.mean(weighed)) if weighed else math.nan,
    )


class GenORM:
    """A `Judge` of whole solutions: `samples` critiques, each followed by a forced yes or no.

    It judges the last step only and abstains before it. The score there is P(yes), mean over the valid samples, of
    kind value: P(the final answer is right | the whole solution), so `aggregate.last` reads it. Φ is the same number,
    its spread the standard error of the mean, 0 for one sample.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        samples: int = 1,
        max_tokens: int = 2048,
        temperature: float | None = None,
        seed: int = 0,
        format: VerifierFormat = WHOLE,
        fits: Callable[[str], bool] | None = None,
    ) -> None:
        """`max_tokens` 0 asks for yes or no without a critique. The rest as for `ThinkPRM`."""
        if samples < 1:
            raise TraceError(f"samples is {samples}; expected at least 1")
        self._model, self._samples, self._max_tokens = model, samples, max_tokens
        self._seed, self._format, self._fits = seed, format, fits
        self._temperature = temperature if temperature is not None else 0.0 if samples == 1 else 0.6

    @property
    def usage(self) -> Usage:
        """The language model's."""
        return self._model.usage

    def judge(self, task: Task, steps: Sequence[Thought]) -> CritiquedJudgement:
        """Judge one solution. Raises `TraceError` on a blank step."""
        [judgement] = self.judge_all([(task, steps)])
        return judgement

    def judge_all(self, traces: Sequence[tuple[Task, Sequence[Thought]]]) -> list[CritiquedJudgement]:
        """Judge many in one batch. Raises `TraceError` on a blank step."""
        prompts = [self._format.prompt(task, [thought.text for thought in steps]) for task, steps in traces]
        asked = [i for i, p in enumerate(prompts) if traces[i][1] and (self._fits is None or self._fits(p))]
        stop = _strings(self._format.end, self._format.question)
        critiques = _criticise(
            self._model,
            [prompts[i] + self._format.begin for i in asked],
            [stop] * len(asked),
            samples=self._samples,
            max_tokens=self._max_tokens,
            temperature=self._temperature,
            seed=self._seed,
        )
        endings = [
            (i, prompts[i] + self._format.begin + c.text.strip() + self._format.end + self._format.question)
            for i, completions in zip(asked, critiques, strict=True)
            for c in completions
            if c.finish == "stop"
        ]
        weighed = _says_yes(
            self._model, [ending for _, ending in endings], self._format.yes, self._format.no, self._fits
        )
        said: dict[int, list[float]] = {i: [] for i in range(len(prompts))}
        for (i, _), p in zip(endings, weighed, strict=True):
            if not np.isnan(p):
                said[i].append(float(p))
        texts = {i: tuple(c.text for c in cs) for i, cs in zip(asked, critiques, strict=True)}
        return [self._judgement(said[i], len(steps), texts.get(i, ())) for i, (_, steps) in enumerate(traces)]

    def _judgement(self, said: Sequence[float], length: int, critiques: tuple[str, ...]) -> CritiquedJudgement:
        potential, spread = np.full(length, np.nan), np.full(length, np.nan)
        outcome = float(np.mean(said)) if said else math.nan
        if said and length:
            potential[-1], spread[-1] = outcome, np.std(said) / math.sqrt(len(said))
        samples = self._samples if length else 0
        return CritiquedJudgement(
            potential=potential,
            spread=spread,
            judged=~np.isnan(potential),
            score=potential.copy(),
            kind=ScoreKind.VALUE,
            critiques=critiques,
            n_samples=samples,
            n_invalid=samples - len(said),
            outcome=outcome,
        )


@dataclass(frozen=True, slots=True)
class Criticised:
    """The steps so far and what they came to; the carry of `GenPRM`."""

    task: Task
    steps: tuple[str, ...] = ()
    potential: float = 1.0
    """P(no error so far); NaN once a step could not be judged."""
    variance: float = 0.0


class GenPRM(ProcessReward[Thought, Criticised]):
    """A critique of each step given the ones before it, then a forced decision; each step is judged once.

    The score of a step, of kind correctness, is P(correct) / (P(correct) + P(incorrect)), mean over the valid samples.
    Φ is the product of the scores so far, P(no error so far), its spread to first order. Where no sample of a step is
    valid the judge abstains, and from there on: a product with an unknown factor is not known. The laws hold as far as
    the model repeats itself: always when greedy, which one sample is by default.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        samples: int = 1,
        max_tokens: int = 512,
        temperature: float | None = None,
        seed: int = 0,
        format: VerifierFormat | None = None,
        fits: Callable[[str], bool] | None = None,
    ) -> None:
        """`max_tokens` bounds one critique; 0 asks for the decision without one. The rest as for `ThinkPRM`."""
        if samples < 1:
            raise TraceError(f"samples is {samples}; expected at least 1")
        self._model, self._samples, self._max_tokens = model, samples, max_tokens
        self._seed, self._format, self._fits = seed, format or VerifierFormat(), fits
        self._temperature = temperature if temperature is not None else 0.0 if samples == 1 else 0.6

    @property
    def usage(self) -> Usage:
        """The language model's."""
        return self._model.usage

    @override
    def start(self, task: Task) -> Criticised:
        """No step criticised yet."""
        return Criticised(task)

    @override
    def extend(
        self, carries: Sequence[Criticised], steps: Sequence[Sequence[Thought]]
    ) -> tuple[list[Criticised], list[Judgement]]:
        """Judgements are `CritiquedJudgement`s of kind correctness. Raises `TraceError` on a blank step."""
        answers = self._extend(carries, steps)
        return [carry for carry, _ in answers], [judgement for _, judgement in answers]

    @override
    def judge(self, task: Task, steps: Sequence[Thought]) -> CritiquedJudgement:
        """As `extend` with all steps, typed as what it is."""
        [(_, judgement)] = self._extend([self.start(task)], [steps])
        return judgement

    def _extend(
        self, carries: Sequence[Criticised], steps: Sequence[Sequence[Thought]]
    ) -> list[tuple[Criticised, CritiquedJudgement]]:
        format = self._format
        prompts: list[str] = []
        heads: list[int] = []
        for carry, new in zip(carries, steps, strict=True):
            texts = [*carry.steps, *(thought.text for thought in new)]
            for number in range(len(carry.steps) + 1, len(texts) + 1):
                prompts.append(format.prompt(carry.task, texts[:number]) + format.begin + format.head(number))
                heads.append(number)
        asked = [i for i, p in enumerate(prompts) if self._fits is None or self._fits(p)]
        critiques = _criticise(
            self._model,
            [prompts[i] for i in asked],
            [_strings(format.box[0], format.head(heads[i] + 1), format.end) for i in asked],
            samples=self._samples,
            max_tokens=self._max_tokens,
            temperature=self._temperature,
            seed=self._seed,
        )
        endings: list[str] = []
        owner: list[int] = []
        for i, completions in zip(asked, critiques, strict=True):
            for c in completions:
                if c.finish == "stop":
                    critique = c.text.rstrip().removesuffix(format.decision).rstrip()
                    endings.append(f"{prompts[i]}{critique} {format.decision} {format.box[0]}")
                    owner.append(i)
        weighed = _says_yes(self._model, endings, format.right, format.wrong, self._fits)
        said: list[list[float]] = [[] for _ in prompts]
        for i, p in zip(owner, weighed, strict=True):
            if not np.isnan(p):
                said[i].append(float(p))
        texts_of = {i: [c.text.strip() for c in cs] for i, cs in zip(asked, critiques, strict=True)}
        answers: list[tuple[Criticised, CritiquedJudgement]] = []
        at = 0
        for carry, new in zip(carries, steps, strict=True):
            mine = range(at, at + len(new))
            written = tuple(
                "\n".join(f"{format.head(heads[i])} {texts_of[i][k]}" for i in mine if i in texts_of)
                for k in range(self._samples if new else 0)
            )
            answers.append(self._judgement(carry, new, [said[i] for i in mine], written))
            at += len(new)
        return answers

    def _judgement(
        self, carry: Criticised, new: Sequence[Thought], said: Sequence[Sequence[float]], critiques: tuple[str, ...]
    ) -> tuple[Criticised, CritiquedJudgement]:
        potential, spread, score = np.full((3, len(new)), np.nan)
        phi, variance = carry.potential, carry.variance
        for i, values in enumerate(said):
            if not values:
                phi, variance = math.nan, math.nan
                continue
            right, error = float(np.mean(values)), float(np.var(values)) / len(values)
            score[i] = right
            phi, variance = phi * right, right**2 * variance + phi**2 * error
            potential[i], spread[i] = phi, math.sqrt(variance)
        judgement = CritiquedJudgement(
            potential=potential,
            spread=spread,
            judged=~np.isnan(potential),
            score=score,
            kind=ScoreKind.CORRECTNESS,
            critiques=critiques,
            n_samples=self._samples * len(new),
            n_invalid=self._samples * len(new) - sum(map(len, said)),
            outcome=phi,
        )
        after = Criticised(carry.task, (*carry.steps, *(thought.text for thought in new)), phi, variance)
        return after, judgement


def _criticise(
    model: LanguageModel,
    prompts: Sequence[str],
    stops: Sequence[Sequence[str]],
    *,
    samples: int,
    max_tokens: int,
    temperature: float,
    seed: int,
) -> list[list[Completion]]:
    """`samples` critiques of each prompt, one batch for each set of stop strings; empty if no token may be used."""
    if max_tokens == 0:
        return [[Completion(text="", tokens=0, finish="stop")] * samples for _ in prompts]
    answers: dict[int, list[Completion]] = {}
    for stop in sorted(set(map(tuple, stops))):
        chosen = [i for i, one in enumerate(stops) if tuple(one) == stop]
        found = model.generate(
            [prompts[i] for i in chosen],
            samples=samples,
            max_tokens=max_tokens,
            temperature=temperature,
            stop=stop,
            seed=seed,
        )
        answers |= dict(zip(chosen, found, strict=True))
    return [answers[i] for i in range(len(prompts))]


def _strings(*strings: str) -> list[str]:
    """Stop strings, those left out that are blank in a format of one's own."""
    return [string.strip() for string in strings if string.strip()]


def _says_yes(
    model: LanguageModel, prompts: Sequence[str], yes: str, no: str, fits: Callable[[str], bool] | None
) -> Float[np.ndarray, " prompts"]:
    """P(yes) of yes and no; NaN where the prompt does not fit."""
    asked = [i for i, prompt in enumerate(prompts) if fits is None or fits(prompt)]
    chances = np.full(len(prompts), np.nan)
    if asked:
        chances[asked] = model.choices([prompts[i] for i in asked], [yes, no])[:, 0]
    return chances


# Texts to train such verifiers on


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationChain:
    """A chain somebody wrote about a solution whose step labels are known."""

    task: Task
    steps: tuple[str, ...]
    labels: tuple[float | None, ...]
    """One for each step, 0 or 1; None after the first error where nobody labelled on."""
    text: str


def recovered(labels: Sequence[float | None]) -> tuple[float | None, ...]:
    """Every label before the last 1 becomes 1: what a later step is right about again was no error.

    Source: label fixing of the released data class of ThinkPRM, arXiv 2504.16828. A choice, not a truth: it forgives
    errors that were cancelled by luck.
    """
    last = max((i for i, label in enumerate(labels) if label == 1), default=-1)
    return tuple(1.0 if i <= last else label for i, label in enumerate(labels))


def agrees_on_process(chain: VerificationChain, format: VerifierFormat | None = None) -> bool:
    """The process filter: the chain's decisions up to the first error are the labels. ThinkPRM, 2504.16828."""
    found = parse_decisions(chain.text, len(chain.steps), format)
    wrong = next((i for i, label in enumerate(chain.labels) if label == 0), None)
    known = chain.labels if wrong is None else chain.labels[: wrong + 1]
    if found is None or found.surplus or None in known:
        return False
    return found.right == tuple(label == 1 for label in known)


def agrees_on_outcome(chain: VerificationChain, format: VerifierFormat | None = None) -> bool:
    """The outcome filter: the chain's last decision is the last known label, wherever it found the error."""
    found = parse_decisions(chain.text, len(chain.steps), format)
    return found is not None and found.surplus == 0 and found.right[-1] == _is_right(chain)


def select_chains(
    chains: Sequence[VerificationChain],
    agrees: Callable[[VerificationChain], bool],
    rng: np.random.Generator,
    *,
    per_solution: int = 1,
    longest: int | None = None,
    balanced: bool = True,
) -> list[VerificationChain]:
    """Chains to train on: those that agree, up to `per_solution` of each, as many of right solutions as of wrong ones.

    `longest` is in characters. The order stays; which of too many are kept is drawn from `rng`. Source: ThinkPRM,
    arXiv 2504.16828 (whose released code means to cap the chains of a solution too, but does not count them).
    """
    kept: list[int] = []
    count: dict[tuple[str, tuple[str, ...]], int] = {}
    for i in rng.permutation(len(chains)):
        chain = chains[i]
        key = (chain.task.instruction, chain.steps)
        if count.get(key, 0) < per_solution and (longest is None or len(chain.text) <= longest) and agrees(chain):
            count[key] = count.get(key, 0) + 1
            kept.append(int(i))
    if balanced:
        right, wrong = [i for i in kept if _is_right(chains[i])], [i for i in kept if not _is_right(chains[i])]
        fewer = min(len(right), len(wrong))
        kept = right[:fewer] + wrong[:fewer]
    return [chains[i] for i in sorted(kept)]


def training_text(chain: VerificationChain, format: VerifierFormat | None = None) -> tuple[str, str]:
    """Prompt, which carries no loss, and what the verifier is trained to write after it.

    The chain is cut after its last decision and its decisions are spelled one way; the answer to the question at the
    end is that of the labels. Source: ThinkPRM, arXiv 2504.16828.
    """
    format = format or VerifierFormat()
    text = normalise(chain.text.strip(), format)
    decided = list(_box_pattern(format).finditer(text))
    if decided:
        text = text[: decided[-1].end()]
    verdict = format.yes if _is_right(chain) else format.no
    return format.prompt(chain.task, chain.steps), f"{format.begin}{text}{format.end}{format.question}{verdict}"


def _is_right(chain: VerificationChain) -> bool:
    """Whether the last step that has a label is right."""
    known = [label for label in chain.labels if label is not None]
    if not known:
        raise TraceError("a solution without any label; expected one for each step up to the first error")
    return known[-1] == 1


def _head_pattern(format: VerifierFormat) -> re.Pattern[str]:
    before, _, after = format.step.partition("{i}")
    return re.compile(rf"^[#*\s]*{re.escape(before)}(\d+){re.escape(after)}\**", re.MULTILINE)


def _box_pattern(format: VerifierFormat) -> re.Pattern[str]:
    words = "|".join(re.escape(word) for word in sorted((format.right, format.wrong), key=len, reverse=True))
    return re.compile(rf"{re.escape(format.box[0])}({words}){re.escape(format.box[1])}")
