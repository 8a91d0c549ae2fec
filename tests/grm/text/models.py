"""Language models whose every answer is written in the test."""

from collections.abc import Callable, Sequence

import numpy as np

from grm.text.language import Completion, Usage


class Scripted:
    """`says(prompt, k)` is the k-th sample; it stops at stop strings and is cut at `max_tokens` words."""

    def __init__(self, says: Callable[[str, int], str], weighs: Callable[[str], float] = lambda prompt: 0.9) -> None:
        self.usage = Usage()
        self.prompts: list[str] = []
        self.endings: list[str] = []
        self.calls: list[dict] = []
        self._says, self._weighs = says, weighs

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
        self.prompts += prompts
        self.calls.append({"temperature": temperature, "stop": tuple(stop), "samples": samples, "seed": seed})
        return [[self._one(self._says(p, k), max_tokens, stop) for k in range(samples)] for p in prompts]

    def choices(self, prompts: Sequence[str], options: Sequence[str]) -> np.ndarray:
        assert len(options) == 2
        self.endings += prompts
        first = np.array([self._weighs(p) for p in prompts])
        return np.stack([first, 1 - first], axis=1)

    def room(self, prompt: str) -> None:
        return None

    def _one(self, text: str, max_tokens: int, stop: Sequence[str]) -> Completion:
        at = min((i for i in (text.find(s) for s in stop) if i >= 0), default=len(text))
        text = text[:at]
        tokens = len(text.split())
        self.usage.calls += 1
        self.usage.completion_tokens += min(tokens, max_tokens)
        if tokens > max_tokens:
            return Completion(text=" ".join(text.split()[:max_tokens]), tokens=max_tokens, finish="length")
        return Completion(text=text, tokens=tokens, finish="stop")
