"""What every language model here can do, wherever it runs: continue prompts, and weigh given continuations."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

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


class LanguageModel(Protocol):
    """A causal language model: a tiny one trained here, a Hugging Face checkpoint, an endpoint elsewhere."""

    @property
    def usage(self) -> Usage:
        """What was computed or paid for so far; it counts on."""
        ...

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

    def choices(self, prompts: Sequence[str], options: Sequence[str]) -> Float[np.ndarray, "prompts options"]:
        """P(option | prompt), normalised over the `options`, whose first tokens must differ; rows sum to 1."""
        ...
