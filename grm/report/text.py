"""Solutions as one HTML file: every step coloured by its score, what was written about it, the number it comes to.

Self-contained like the page of a run. Nothing here needs a script but the choice of what is listed.
"""

import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..reward import ScoreKind
from ..text.generative import CritiquedJudgement, split_critiques
from ..text.scoring import ScoredSolution, step_scores
from .page import fill, write_html

SHOWN = 200
"""Solutions on a page; further ones are in the numbers only."""
MEANING = {
    ScoreKind.CORRECTNESS: "correctness: P(this step is right), given that the ones before are",
    ScoreKind.VALUE: "value: P(the final answer comes out right), going on from this step",
    ScoreKind.ADVANTAGE: "advantage: how much this step changed the chance to arrive, from −1 to 1",
    ScoreKind.VERDICT: "verdict: whether this step is called right, 1, or wrong, 0",
}
"""What a score says, by its kind."""
_CRITIQUE = 6000
"""Characters of a critique that are shown."""


def write_text_page(
    path: Path,
    scored: Sequence[ScoredSolution],
    *,
    title: str,
    command: str,
    threshold: float = 0.5,
    numbers: Sequence[tuple[str, float]] = (),
    settings: Mapping[str, str | float] | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Write the page of these solutions, the worst first. Raises `OutputError` if that fails."""
    order = worst_first(scored)
    shown = order[:SHOWN]
    notes = [*notes]
    if len(shown) < len(order):
        notes.insert(0, f"The worst {len(shown)} of {len(order)} solutions are shown; scores.jsonl has all.")
    kinds = list(dict.fromkeys(one.judgement.kind for one in scored))
    listed = {
        "all": len(shown),
        "error": sum(_found_error(one) for one in shown),
        "disagrees": sum(one.disagrees for one in shown),
        "abstained": sum(_abstained(one) for one in shown),
    }
    parts = {
        "title": html.escape(title),
        "command": html.escape(command),
        "kind": html.escape("; ".join(MEANING[kind] for kind in kinds)),
        "low": "−1" if kinds == [ScoreKind.ADVANTAGE] else "0",
        "threshold": f"{threshold:g}",
        "numbers": "".join(_pair(name, _number(value)) for name, value in numbers),
        "settings": "".join(_pair(name, value) for name, value in (settings or {}).items() if value != ""),
        "solutions": "".join(_solution(number, one, opened=number <= 3) for number, one in enumerate(shown, 1)),
        "notes": "".join(f"<li>{html.escape(note)}</li>" for note in notes),
        "hide_numbers": "" if numbers else "hidden",
        "hide_notes": "" if notes else "hidden",
        "hide_disagrees": "" if any(one.solution.first_error is not None for one in shown) else "hidden",
    }
    parts |= {f"count_{name}": str(count) for name, count in listed.items()}
    write_html(fill("text.html", parts), path)


def worst_first(scored: Sequence[ScoredSolution]) -> list[ScoredSolution]:
    """By the aggregate from low to high; those without one come last, for nobody knows how bad they are."""
    return sorted(scored, key=lambda one: (math.isnan(one.aggregate), one.aggregate))


def _found_error(one: ScoredSolution) -> bool:
    return one.first_error is not None and one.first_error >= 0


def _abstained(one: ScoredSolution) -> bool:
    return math.isnan(one.aggregate) or one.n_abstained > 0


def _solution(number: int, one: ScoredSolution, *, opened: bool) -> str:
    solution, judgement = one.solution, one.judgement
    shares = [_share(score, judgement.kind) for score in step_scores(judgement)]
    strip = "".join(f'<i class="{_tone(share)}" style="{_fill(share)}"></i>' for share in shares)
    by_step, whole = _critiques(one)
    steps = "".join(_step(i, one, share, by_step.get(i, ())) for i, share in enumerate(shares))
    flags = [name for name, on in (("error", _found_error(one)), ("disagrees", one.disagrees)) if on]
    flags += ["abstained"] if _abstained(one) else []
    aggregate = "abstained" if math.isnan(one.aggregate) else f"{one.aggregate:.2f}"
    badges = []
    if solution.final_answer_correct is not None:
        right = solution.final_answer_correct
        badges.append(f'<span class="badge{" yes" if right else ""}">{"right" if right else "wrong"} answer</span>')
    if one.disagrees:
        badges.append('<span class="badge">not as labelled</span>')
    if one.n_abstained:
        badges.append(f'<span class="badge none">{one.n_abstained} of {len(judgement)} steps abstained</span>')
    name = f"<b>{html.escape(solution.source)}</b> " if solution.source else ""
    said = "".join(_details(title, text) for title, text in whole)
    if isinstance(judgement, CritiquedJudgement):
        said += f'<p class="hint">{html.escape(_counts(judgement))}</p>'
    return (
        f'<details class="solution" data-is="{" ".join(flags)}"{" open" if opened else ""}>'
        f'<summary><span class="rank">{number}</span><span class="problem">{name}{html.escape(solution.prompt)}</span>'
        f'<span class="strip" aria-hidden="true">{strip}</span>'
        f'<span class="aggregate{" none" if math.isnan(one.aggregate) else ""}">{html.escape(one.aggregator)} '
        f"<b>{aggregate}</b></span></summary>"
        f'<div class="body"><p class="badges">{"".join(badges)}</p><p class="task">{html.escape(solution.prompt)}</p>'
        f'<ol class="steps">{steps}</ol>{said}</div></details>'
    )


def _step(i: int, one: ScoredSolution, share: float, critiques: Sequence[str]) -> str:
    solution, judgement = one.solution, one.judgement
    score, label = float(step_scores(judgement)[i]), solution.labels[i]
    marks = []
    if i == one.first_error:
        marks.append('<span class="mark">judge: first error</span>')
    if solution.first_error is not None and i == solution.first_error:
        marks.append('<span class="mark label">label: first error</span>')
    elif label is not None and 0 < label < 1:
        marks.append(f'<span class="mark label">label {label:.2f}</span>')
    if not math.isnan(score):
        number = f'<b class="score">{score:.2f}</b>'
    elif _found_error(one) and i > (one.first_error or 0) and judgement.judged[i]:
        number = '<b class="score none">not reached</b>'
    else:
        number = '<b class="score none">abstained</b>'
    shown = "".join(_details(f"Critique {k} of {len(critiques)}", c) for k, c in enumerate(critiques, 1))
    if len(critiques) == 1:
        shown = f'<div class="critique">{html.escape(critiques[0][:_CRITIQUE])}</div>'
    return (
        f'<li class="step {_tone(share)}" style="{_fill(share)}"><span class="index">{i + 1}</span>'
        f'<div class="text">{html.escape(solution.steps[i])}{"".join(marks)}{shown}</div>{number}</li>'
    )


def _critiques(one: ScoredSolution) -> tuple[dict[int, list[str]], list[tuple[str, str]]]:
    """What was written, by the index of the step it is about, and what is about no one step or cannot be told."""
    by_step: dict[int, list[str]] = {}
    whole: list[tuple[str, str]] = []
    if isinstance(one.judgement, CritiquedJudgement):
        for k, text in enumerate(one.judgement.critiques, 1):
            parts = split_critiques(text)
            for number, critique in parts.items():
                if 1 <= number <= len(one.judgement) and critique:
                    by_step.setdefault(number - 1, []).append(critique)
            if text.strip() and not any(1 <= number <= len(one.judgement) for number in parts):
                whole.append((f"Critique {k} of the solution", text))
    return by_step, whole


def _counts(judgement: CritiquedJudgement) -> str:
    said = f"{judgement.n_samples} critiques asked for"
    if judgement.n_invalid:
        said += f", {judgement.n_invalid} without a decision that could be read (left out, not counted as 0)"
    if judgement.n_surplus:
        said += f", {judgement.n_surplus} of steps that do not exist"
    return said if math.isnan(judgement.outcome) else f"{said}; P(the whole solution is right) {judgement.outcome:.2f}"


def _details(title: str, text: str) -> str:
    cut = text[:_CRITIQUE] + (" …" if len(text) > _CRITIQUE else "")
    body = f'<div class="critique">{html.escape(cut)}</div>'
    return f'<details class="said"><summary>{html.escape(title)}</summary>{body}</details>'


def _share(score: float, kind: ScoreKind) -> float:
    """Where on the scale of colours a score is, in [0, 1]; NaN for none."""
    return (score + 1) / 2 if kind is ScoreKind.ADVANTAGE else score


def _tone(share: float) -> str:
    return "none" if math.isnan(share) else "low" if share < 0.5 else "high"


def _fill(share: float) -> str:
    return "" if math.isnan(share) else f"--share:{100 * min(max(share, 0.0), 1.0):.0f}%"


def _pair(name: str, value: str | float) -> str:
    return f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(str(value))}</dd></div>"


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
