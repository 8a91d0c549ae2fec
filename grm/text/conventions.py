"""How a discriminative step judge wants to be asked: released families as data, and the tokens that follow from them.

    family         layout                                     read at                        number
    qwen           chat; each step closed by <extra_0>        the tag                        softmax of 2 classes
    math-shepherd  one text; each step closed by " ки"        the tag                        softmax of "+" and "-"
    skywork        question, then each step and line break    the line break                 sigmoid of a value head
    rlhflow        chat; a user's turn per step, answer "+"   what predicts the answer       softmax of "+" and "-"
    trl            question, then each step and separator     last token of the separator    softmax of 2 classes

A tag in the wrong place shifts every score after it, and nothing crashes: so each of these is checked here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from ..errors import CheckpointError, TraceError
from ..reward import ScoreKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Convention:
    """How a family of judges is asked and read; plain data, kept beside the weights as `convention.json`."""

    name: str
    layout: Literal["text", "pieces", "chat", "turns"]
    """`text`: question, steps and tags are one text, and tokenized as one. `pieces`: each is tokenized on its own.
    `chat`: the steps are one assistant's turn. `turns`: each step is a user's turn that the assistant answers."""
    tag: str
    """Closes each step: one token. For `turns`, the answer that the model sees to the steps before."""
    reading: Literal["classes", "tokens", "scalar"]
    """Softmax of two classes (1 is right), softmax of the two tokens `right` and `wrong`, or sigmoid of one number."""
    kind: ScoreKind
    """Correctness where people or judges labelled steps, value where rollouts did."""
    opening: str = "{question}"
    """What comes before the first step (`text`, `pieces`); `{bos}` is the tokenizer's beginning."""
    joint: str = ""
    """Between a tag and the next step (`text`)."""
    system: str = ""
    """System turn (`chat`); none if empty."""
    right: str = "+"
    """As it follows what is read, a space before it included."""
    wrong: str = "-"
    head: Literal["linear", "mlp"] = "linear"
    """Of `classes` and `scalar`: one layer, or two with a ReLU between."""
    weights: str = "score"
    """Where a released checkpoint keeps the head."""


QWEN = Convention(
    name="qwen",
    layout="chat",
    tag="<extra_0>",
    reading="classes",
    kind=ScoreKind.CORRECTNESS,
    system="Please reason step by step, and put your final answer within \\boxed{}.",
    head="mlp",
)
"""Qwen2.5-Math-PRM (arXiv 2501.07301)."""
MATH_SHEPHERD = Convention(
    name="math-shepherd",
    layout="text",
    tag=" ки",
    reading="tokens",
    kind=ScoreKind.VALUE,
    opening="{question} ",
    joint="\n",
    right=" +",
    wrong=" -",
)
"""Math-Shepherd (arXiv 2312.08935): whether any of a few rollouts came out right: a value. Steps say `Step 1: ...`."""
SKYWORK = Convention(
    name="skywork",
    layout="pieces",
    tag="\n",
    reading="scalar",
    kind=ScoreKind.VALUE,
    opening="{bos}{question}\n",
    weights="v_head.summary",
)
"""Skywork-o1-Open-PRM: a value head on a language model. Its labels are not published; it drifts towards outcomes."""
RLHFLOW = Convention(
    name="rlhflow",
    layout="turns",
    tag="+",
    reading="tokens",
    kind=ScoreKind.VALUE,
)
"""RLHFlow's PRMs, on Math-Shepherd's kind of labels; the first turn is the question, a space and the first step."""
TRL = Convention(
    name="trl",
    layout="pieces",
    tag="\n",
    reading="classes",
    kind=ScoreKind.CORRECTNESS,
    opening="{bos}{question}",
)
"""What TRL's PRMTrainer makes: token classification at the last token of each step and its separator."""

CONVENTIONS = {convention.name: convention for convention in (QWEN, MATH_SHEPHERD, SKYWORK, RLHFLOW, TRL)}
RELEASED = {
    "Qwen/Qwen2.5-Math-PRM-7B": QWEN,
    "Qwen/Qwen2.5-Math-PRM-72B": QWEN,
    "Qwen/Qwen2.5-Math-7B-PRM800K": QWEN,
    "peiyi9979/math-shepherd-mistral-7b-prm": MATH_SHEPHERD,
    "Skywork/Skywork-o1-Open-PRM-Qwen-2.5-1.5B": SKYWORK,
    "Skywork/Skywork-o1-Open-PRM-Qwen-2.5-7B": SKYWORK,
    "RLHFlow/Llama3.1-8B-PRM-Mistral-Data": RLHFLOW,
    "RLHFlow/Llama3.1-8B-PRM-Deepseek-Data": RLHFLOW,
}
"""Checkpoints whose convention is known by their Hub id."""


def find_convention(source: str | Path, convention: Convention | str | None = None) -> Convention:
    """The one given, or named, or written in the folder, or known for the Hub id; else raises `CheckpointError`."""
    if isinstance(convention, Convention):
        return convention
    if convention is not None:
        if convention not in CONVENTIONS:
            raise CheckpointError(f"no convention {convention!r}; expected one of {', '.join(CONVENTIONS)}")
        return CONVENTIONS[convention]
    path = Path(source) / "convention.json"
    if path.exists():
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return Convention(**(content | {"kind": ScoreKind(content["kind"])}))
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(
                f"{path} is no convention ({error}); expected what `save_pretrained` wrote"
            ) from error
    if str(source) in RELEASED:
        return RELEASED[str(source)]
    raise CheckpointError(
        f"nothing says how {str(source)!r} is to be asked; name a convention: {', '.join(CONVENTIONS)}"
    )


def write_convention(folder: Path, convention: Convention) -> None:
    """Beside the weights, for `find_convention`."""
    (Path(folder) / "convention.json").write_text(json.dumps(asdict(convention), indent=2) + "\n", encoding="utf-8")


def split_steps(solution: str) -> list[str]:
    """Steps of a plain solution: its paragraphs if it has blank lines, its lines otherwise; empty ones do not count."""
    pieces = solution.split("\n\n") if "\n\n" in solution.strip() else solution.split("\n")
    return [piece.strip() for piece in pieces if piece.strip()]


@dataclass(frozen=True, slots=True)
class Asked:
    """A question and T steps in tokens."""

    tokens: list[int]
    reads: list[int]
    """Index of the token at which each of the T steps is read, ascending."""


class Asker:
    """Turns questions and steps into tokens by a convention. More steps only ever add tokens.

    Raises `CheckpointError` if the tokenizer does not fit the convention: the tag or an answer is not one token, there
    is no chat template.
    """

    def __init__(self, tokenizer: Any, convention: Convention) -> None:
        self.tokenizer, self.convention = tokenizer, convention
        if convention.layout in ("chat", "turns") and not tokenizer.chat_template:
            raise CheckpointError(
                f"convention {convention.name!r} is a chat, and the tokenizer has no chat template; expected the "
                f"tokenizer that came with the model"
            )
        added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        special = sorted({*tokenizer.all_special_tokens, *added} - {""})
        self._special = re.compile("|".join(map(re.escape, special)) or "(?!)")
        self._tag: list[int] = []
        if convention.layout == "pieces":
            self._tag = tokenizer(convention.tag, add_special_tokens=False)["input_ids"]
            if not self._tag:
                raise CheckpointError(
                    f"separator {convention.tag!r} has no token in this tokenizer; expected at least one"
                )
        elif convention.layout != "turns":
            self._tag = [self._single(convention.tag)]
        # Python calls this often, and rendering a template is slow.
        self._opened = lru_cache(maxsize=4096)(self._open_chat)

    def answers(self) -> tuple[int, int]:
        """Tokens of `wrong` and `right`, as they follow what is read."""
        return self._single(self.convention.wrong), self._single(self.convention.right)

    def ask(self, question: str, steps: Sequence[str]) -> Asked:
        """Tokens up to the last step's reading. Raises `TraceError` for an empty step, or a tag where none may be."""
        self._check(question, steps)
        match self.convention.layout:
            case "pieces":
                return self._in_pieces(question, steps)
            case "turns":
                return self._in_turns(question, steps)
            case _:
                return self._in_one(question, steps)

    def _check(self, question: str, steps: Sequence[str]) -> None:
        tag = self.convention.tag.strip() or self.convention.tag
        for index, step in enumerate(steps):
            if not step.strip():
                raise TraceError(f"step {index} is empty; expected text (leave the step out, or join it to another)")
            if self.convention.layout != "turns" and tag in step:
                raise TraceError(
                    f"step {index} holds the tag {tag!r} that closes a step ({step[:60]!r}); expected steps without: "
                    f"split there, or replace it"
                )
        if self.convention.layout in ("text", "chat") and tag in question:
            raise TraceError(f"the question holds the tag {tag!r} that closes a step; expected a question without it")
        for text in (question, *steps):
            forged = self._special.search(text)
            if forged is not None:
                raise TraceError(
                    f"{text[:60]!r} holds the special token {forged[0]!r}, which would be read as the end of "
                    f"something; expected plain text"
                )

    def _in_one(self, question: str, steps: Sequence[str]) -> Asked:
        closed = [step + self.convention.tag for step in steps]
        if self.convention.layout == "chat":
            tokens = self._tokens(self._opened(question) + self.convention.joint.join(closed), plain=True)
        else:
            opening, plain = self._opening(question)
            tokens = self._tokens(opening + self.convention.joint.join(closed), plain=plain)
        reads = [i for i, token in enumerate(tokens) if token == self._tag[0]]
        if len(reads) != len(steps):
            raise TraceError(
                f"{len(reads)} tags for {len(steps)} steps of {question[:40]!r}: something else is the token of "
                f"{self.convention.tag!r}, or it melted into a step; expected one tag per step"
            )
        return Asked(tokens, reads)

    def _in_pieces(self, question: str, steps: Sequence[str]) -> Asked:
        opening, plain = self._opening(question)
        tokens = self._tokens(opening, plain=plain)
        reads: list[int] = []
        if steps:
            for ids in self.tokenizer(list(steps), add_special_tokens=False)["input_ids"]:
                tokens += [*ids, *self._tag]
                reads.append(len(tokens) - 1)
        return Asked(tokens, reads)

    def _in_turns(self, question: str, steps: Sequence[str]) -> Asked:
        if not steps:
            return Asked([], [])
        turns: list[dict[str, str]] = []
        texts: list[str] = []
        for index, step in enumerate(steps):
            turns.append({"role": "user", "content": f"{question} {step}" if index == 0 else step})
            texts.append(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
            turns.append({"role": "assistant", "content": self.convention.tag})
        encoded = self.tokenizer(texts[-1], add_special_tokens=False, return_offsets_mapping=True)
        ends = [end for _, end in encoded["offset_mapping"]]
        reads: list[int] = []
        at = -1
        for index, text in enumerate(texts):
            while at + 1 < len(ends) and ends[at + 1] <= len(text):
                at += 1
            if not texts[-1].startswith(text) or at < 0 or text[ends[at] :].strip():
                raise TraceError(
                    f"the chat template changes what it wrote before step {index}; expected one that only appends"
                )
            reads.append(at)
        return Asked(encoded["input_ids"], reads)

    def _open_chat(self, question: str) -> str:
        turns = [{"role": "system", "content": self.convention.system}] if self.convention.system else []
        turns += [{"role": "user", "content": question}, {"role": "assistant", "content": self.convention.tag}]
        return self.tokenizer.apply_chat_template(turns, tokenize=False).rpartition(self.convention.tag)[0]

    def _opening(self, question: str) -> tuple[str, bool]:
        """What comes before the first step, and whether the tokenizer should leave it at that."""
        opening = self.convention.opening
        plain = opening.startswith("{bos}")
        return opening.replace("{bos}", self.tokenizer.bos_token or "").replace("{question}", question), plain

    def _tokens(self, text: str, *, plain: bool) -> list[int]:
        return self.tokenizer(text, add_special_tokens=not plain)["input_ids"]

    def _single(self, text: str) -> int:
        """The one token that `text` is after a word."""
        before = self._tokens("1", plain=True)
        tokens = self._tokens("1" + text, plain=True)
        if tokens[:-1] != before:
            before, tokens = [], self._tokens(text, plain=True)
        if len(tokens) != len(before) + 1 or tokens[-1] == self.tokenizer.unk_token_id:
            raise CheckpointError(
                f"{text.strip() or text!r} is not a single token in this tokenizer, as convention "
                f"{self.convention.name!r} has it; expected the tokenizer that came with the model"
            )
        return tokens[-1]
