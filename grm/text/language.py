"""What every language model here can do, wherever it runs: continue prompts, and weigh given continuations."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One continuation of a prompt, without the prompt and without the stop string that ended it."""

    text: str
    tokens: int
    """Generated, the stop string's among them."""
    finish: Literal["stop", "length"]
    """`stop`: it ended by itself or at a stop string; `length`: it was cut off and is not whole."""


@dataclass(slots=True)
class Usage:
    """What was computed or paid for so far; compute is compared in tokens *and* calls."""

    calls: int = 0
    """Prompts that were answered, each sample of a prompt counted once."""
    prompt_tokens: int = 0
    """Tokens that were read; a prefix that was reused is not counted again."""
    completion_tokens: int = 0
    """Tokens that were generated."""

    def __str__(self) -> str:
        return f"{self.calls:,} calls, {self.prompt_tokens:,} tokens read, {self.completion_tokens:,} written"


@runtime_checkable
class Metered(Protocol):
    """A model or a judge that counts what it takes."""

    @property
    def usage(self) -> Usage:
        """What was computed or paid for so far; it counts on."""
        ...


class Writer(Metered, Protocol):
    """What continues prompts; enough for rollouts and for graders."""

    def generate(
        self,
        prompts: Sequence[str],
        *,
        samples: int = 1,
        max_tokens: int = 256,
        temperature: float = 0.0,
        stop: Sequence[str] = (),
        seed: int = 0,
    ) -> list[list[Completion]]:
        """`samples` continuations of each prompt. `temperature` 0 is greedy; here, a seed repeats itself."""
        ...


class LanguageModel(Writer, Protocol):
    """A causal language model: a tiny one trained here, a Hugging Face checkpoint, an endpoint elsewhere."""

    def choices(self, prompts: Sequence[str], options: Sequence[str]) -> Float[np.ndarray, "prompts options"]:
        """P(option | prompt), normalised over the `options`, whose first tokens must differ.

        Rows sum to 1, or are NaN where the model cannot say, which is an abstention and no probability: an endpoint
        names its likeliest tokens only, and refuses a prompt that is longer than its context.
        """
        ...

    def room(self, prompt: str) -> int | None:
        """Tokens of the context that a prompt leaves for its continuation, not below 0; None if nobody here knows."""
        ...
