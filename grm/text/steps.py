r"""A solution's text as steps, and its answer as something that can be compared.

Steps are what `\n\n` separates, what "Step i:" numbers, or what a tag closes. Two answers are the same if their
canonical forms are: 0.5, 1/2 and \frac{1}{2} are one, and a vote counts them together.
"""

import re
from collections.abc import Sequence
from fractions import Fraction

from ..errors import TraceError

_NUMBERED = re.compile(r"^[#*\s]*Step\s+(\d+)\s*[:.]", re.MULTILINE)
_STATED = re.compile(
    r"(?:the\s+(?:final\s+)?answer\s+is|####)[^\S\n]*:?[^\S\n]*"
    # A line of its own: anything behind a colon, without one a single word, for "Answer the question" states nothing.
    r"|^(?:wait,?[^\S\n]+)?(?:final[^\S\n]+)?answer(?:[^\S\n]*:[^\S\n]*|[^\S\n]+(?=\S+[^\S\n]*$))",
    re.IGNORECASE | re.MULTILINE,
)


def split_paragraphs(text: str) -> list[str]:
    r"""Steps separated by blank lines, stripped; blank ones are no steps. Source: Qwen "Lessons", arXiv 2501.07301."""
    return [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]


def split_numbered(text: str) -> list[str]:
    """Steps that begin a line with "Step i:", the number kept; what comes before the first is a step of its own.

    The numbers must be 1, 2, 3, …; a "Step 7:" out of turn is part of the step that it stands in.
    """
    cuts, wanted = [0], 1
    for found in _NUMBERED.finditer(text):
        if int(found[1]) == wanted:
            cuts.append(found.start())
            wanted += 1
    parts = [text[a:b].strip() for a, b in zip(cuts, [*cuts[1:], len(text)], strict=True)]
    return [part for part in parts if part]


def split_tagged(text: str, tag: str) -> list[str]:
    """Steps that `tag` closes or separates, stripped. Raises `TraceError` if one between two tags is blank."""
    *parts, rest = [part.strip() for part in text.split(tag)]
    for i, part in enumerate(parts):
        if not part:
            raise TraceError(f"step {i} is blank: nothing comes before its {tag!r}; expected text (remove the tag)")
    return [*parts, rest] if rest else parts


def join_tagged(steps: Sequence[str], tag: str) -> str:
    """Every step with `tag` after it. Raises `TraceError` on a blank step, or one that contains the tag."""
    for i, step in enumerate(steps):
        check_step(i, step, tag)
    return "".join(step + tag for step in steps)


def check_step(index: int, text: str, separator: str | None = None) -> None:
    """Raise `TraceError` if a step is blank, or contains what separates steps."""
    if not text.strip():
        raise TraceError(f"step {index} is blank; expected text (drop the step)")
    if separator is not None and separator in text:
        raise TraceError(f"step {index} contains the separator {separator!r}; expected it only between steps")


def extract_answer(text: str) -> str | None:
    r"""The answer that a solution gives: in its last `\boxed{}`, or else after its last "The answer is" or "####", or
    on its last line "Answer: x" or "answer x".

    None if it gives none, an empty one, or a box that is never closed: that is no answer, and no guess either.
    """
    box = text.rfind("\\boxed{")
    if box >= 0:
        start = box + len("\\boxed{")
        depth = 1
        for i in range(start, len(text)):
            depth += (text[i] == "{") - (text[i] == "}")
            if depth == 0:
                return text[start:i].strip() or None
        return None
    stated = list(_STATED.finditer(text))
    if not stated:
        return None
    line = text[stated[-1].end() :].partition("\n")[0]
    return line.strip().removesuffix(".").strip() or None


def canonical_answer(answer: str) -> str:
    r"""One spelling for all that mean the same: numbers as reduced fractions, the rest without typesetting.

    Strips `$`, `\left` and `\right`, `\text{}`, spacing, units in degrees and per cent, commas between thousands, and
    "x =" before a value; case is kept only in one-letter names. What it does not understand stays as it is, so two
    spellings of one answer may differ. 50 % and 50 are one, as the benchmarks have it, and so are 1,000 and 1000.
    """
    text = answer.strip().replace("\\$", "").replace("$", "").strip().removesuffix(".")
    text = re.sub(r"\\(?:left|right|displaystyle|!|,|;|:|quad|qquad)(?![a-zA-Z])", "", text)
    text = re.sub(r"\\(?:text|textbf|mathrm|mbox|mathbf)\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\[dt]frac", r"\\frac", text)
    text = re.sub(r"\\frac(\d)(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\^\{?\\circ\}?|\\degree|°|\\?%", "", text)
    text = text.replace("\\ ", " ").replace("−", "-")
    if re.fullmatch(r"\s*[a-zA-Z]\w?\s*=[^=]+", text):
        text = text.split("=")[1]
    text = re.sub(r"\s+", " ", text).strip()
    number = _number(re.sub(r"(?<=\d),(?=\d{3}(?:\D|$))", "", text))
    if number is not None:
        return str(number)
    return text if len(text) == 1 else re.sub(r"\s*([-+*/^=(),{}])\s*", r"\1", text).lower()


def same_answer(one: str, other: str) -> bool:
    """Whether two answers have one canonical form."""
    return canonical_answer(one) == canonical_answer(other)


def _number(text: str) -> Fraction | None:
    fraction = re.fullmatch(r"(-?)\s*\\frac\{\s*(-?\d+)\s*\}\{\s*(-?\d+)\s*\}", text)
    if fraction is not None:
        text = f"{fraction[2]}/{fraction[3]}"
    plain = re.fullmatch(r"[-+]?(\d+(\.\d*)?|\.\d+)|([-+]?\d+)\s*/\s*(-?\d+)", text)
    if plain is None or len(text) > 100:
        return None
    if plain[3] is not None:
        if int(plain[4]) == 0:
            return None
        value = Fraction(int(plain[3]), int(plain[4]))
    else:
        value = Fraction(text)
    return -value if fraction is not None and fraction[1] else value
