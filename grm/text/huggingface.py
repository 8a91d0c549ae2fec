"""Hugging Face causal language models, as a `LanguageModel`: a local folder, a Hub id, or one trained in `tiny`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import CheckpointError, TraceError
from .language import Completion, Usage
from .tiny import import_transformers


@dataclass(slots=True)
class _Row:
    """One continuation in the making."""

    prompt: tuple[int, ...]
    noise: Float[np.ndarray, " max_tokens"]
    """Uniform numbers, one for each token to be drawn: the row's own, whatever else is in the batch."""
    tokens: list[int] = field(default_factory=list)
    finish: str = ""


class HuggingFaceModel:
    """A causal language model that runs here. What it says does not depend on what else is in its batches.

    (But for rounding: batched matrix products differ in the last digits, which can tip a draw or a tie.)
    """

    def __init__(self, model: Any, tokenizer: Any, *, batch: int = 32) -> None:
        """`batch`: continuations that are computed at once."""
        self.model, self.tokenizer, self.batch = model.eval(), tokenizer, batch
        self.usage = Usage()
        self.context: int = model.config.max_position_embeddings
        """Tokens that a prompt and its continuation may have together."""
        ends = [model.generation_config.eos_token_id, tokenizer.eos_token_id]
        self._ends = {i for end in ends for i in (end if isinstance(end, list) else [end]) if i is not None}

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        device: str = "cpu",
        dtype: str = "auto",
        batch: int = 32,
        revision: str | None = None,
    ) -> Self:
        """From a local folder or a Hub id. Raises `CheckpointError` if there is no causal language model."""
        transformers = import_transformers()
        try:
            model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=dtype, revision=revision)
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, revision=revision)
        except (OSError, ValueError) as error:  # no such folder or id, no network; not a causal language model
            raise CheckpointError(
                f"no causal language model at {str(source)!r} ({type(error).__name__}: {str(error).splitlines()[0]}); "
                f"expected a folder that `save_pretrained` wrote, or a Hub id 'owner/name'"
            ) from error
        return cls(model.to(device), tokenizer, batch=batch)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model and tokenizer to a folder that `from_pretrained` reads."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

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
        """As `LanguageModel.generate`. The seed, the prompt's place in the list and the sample's number fix a draw.

        Where the context ends, so does the continuation (`length`). Raises `TraceError` if a prompt leaves no room for
        one, or for a negative temperature, no samples, no tokens, or an empty stop string.
        """
        if temperature < 0 or samples < 1 or max_tokens < 1 or "" in stop:
            raise TraceError(
                f"temperature {temperature}, {samples} samples, {max_tokens} tokens, stop {list(stop)}; expected a "
                f"temperature from 0, at least one sample and token, and stop strings that are not empty"
            )
        rows = []
        for number, prompt in enumerate(prompts):
            tokens = self._encode(prompt)
            for sample in range(samples):
                noise = np.random.default_rng([seed, number, sample]).random(max_tokens)
                rows.append(_Row(tuple(tokens), noise))
        # Long prompts with long ones: less padding. A prompt's samples stay together, to be read once.
        order = sorted(range(len(rows)), key=lambda i: (-len(rows[i].prompt), i))
        for at in range(0, len(order), self.batch):
            self._continue([rows[i] for i in order[at : at + self.batch]], max_tokens, temperature, stop)
        completions = [self._completion(row, stop) for row in rows]
        return [completions[at : at + samples] for at in range(0, len(completions), samples)]

    def room(self, prompt: str) -> int:
        """As `LanguageModel.room`."""
        return max(0, self.context - len(self._tokens(prompt)))

    @torch.inference_mode()
    def choices(self, prompts: Sequence[str], options: Sequence[str]) -> Float[np.ndarray, "prompts options"]:
        """As `LanguageModel.choices`, by the options' first tokens. Raises `TraceError` if two share theirs."""
        if not options:
            raise TraceError("no options to choose from; expected at least one")
        encoded = [self._encode(prompt) for prompt in prompts]
        firsts = [
            [self._first_token(p, tokens, o) for o in options] for p, tokens in zip(prompts, encoded, strict=True)
        ]
        for of_prompt in firsts:
            if len(set(of_prompt)) < len(options):
                raise TraceError(f"options {list(options)} share a first token; expected options that differ in theirs")
        chances = np.zeros((len(prompts), len(options)))
        order = sorted(range(len(prompts)), key=lambda i: -len(encoded[i]))
        for at in range(0, len(order), self.batch):
            picked = order[at : at + self.batch]
            ids, mask = self._left_padded([encoded[i] for i in picked])
            logits = self._forward(ids, mask, _positions(mask), None).logits[:, -1].double()
            of_options = logits.gather(1, torch.tensor([firsts[i] for i in picked], device=logits.device))
            chances[picked] = of_options.softmax(-1).cpu().numpy()
            self.usage.calls += len(picked)
            self.usage.prompt_tokens += int(mask.sum())
        return chances

    @torch.inference_mode()
    def _continue(self, rows: list[_Row], max_tokens: int, temperature: float, stop: Sequence[str]) -> None:
        """Fill the rows' tokens: prompts are read once each, then all rows advance together, done ones dropping out."""
        prompts = list(dict.fromkeys(row.prompt for row in rows))
        ids, mask = self._left_padded(prompts)
        answer = self._forward(ids, mask, _positions(mask), None, use_cache=True)
        self.usage.prompt_tokens += int(mask.sum())
        self.usage.calls += len(rows)
        of_row = torch.tensor([prompts.index(row.prompt) for row in rows], device=ids.device)
        cache, mask, logits = answer.past_key_values, mask[of_row], answer.logits[of_row, -1]
        cache.batch_select_indices(of_row)
        alive = rows
        while True:
            drawn = self._draw(logits, alive, temperature)
            for row, token in zip(alive, drawn, strict=True):
                row.tokens.append(token)
                if token in self._ends or self._stopped(row, stop):
                    row.finish = "stop"
                elif len(row.tokens) == max_tokens or len(row.prompt) + len(row.tokens) >= self.context:
                    row.finish = "length"
            keep = [i for i, row in enumerate(alive) if not row.finish]
            if not keep:
                break
            if len(keep) < len(alive):
                kept = torch.tensor(keep, device=mask.device)
                cache.batch_select_indices(kept)
                mask, alive, drawn = mask[kept], [alive[i] for i in keep], [drawn[i] for i in keep]
            mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=1)
            latest = torch.tensor(drawn, device=mask.device)[:, None]
            logits = self._forward(latest, mask, mask.sum(1, keepdim=True) - 1, cache, use_cache=True).logits[:, -1]
        self.usage.completion_tokens += sum(len(row.tokens) for row in rows)

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any, *, use_cache: bool = False) -> Any:
        return self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=use_cache,
            logits_to_keep=1,
        )

    def _draw(self, logits: Float[Tensor, "rows v"], rows: Sequence[_Row], temperature: float) -> list[int]:
        """The next token of each row: the likeliest, or by inverting the distribution at the row's own noise."""
        if temperature == 0:
            return logits.argmax(-1).tolist()
        summed = (logits.double() / temperature).softmax(-1).cumsum(-1)
        noise = torch.tensor([[row.noise[len(row.tokens)]] for row in rows], dtype=summed.dtype, device=summed.device)
        return (
            torch.searchsorted(summed, noise * summed[:, -1:], right=True).clamp(max=summed.shape[1] - 1)[:, 0].tolist()
        )

    def _stopped(self, row: _Row, stop: Sequence[str]) -> bool:
        if not stop:
            return False
        tail = row.tokens[-(max(map(len, stop)) + 4) :]  # a token has at least one character, but for parts of one
        text = self.tokenizer.decode(tail)
        return any(string in text for string in stop)

    def _completion(self, row: _Row, stop: Sequence[str]) -> Completion:
        """What the row says. Decoded with its prompt, because a word after another begins with its space."""
        tokens = row.tokens[:-1] if row.tokens[-1] in self._ends else row.tokens
        prompt = self.tokenizer.decode(row.prompt, skip_special_tokens=True)
        whole = self.tokenizer.decode([*row.prompt, *tokens], skip_special_tokens=True)
        text = (
            whole[len(prompt) :]
            if whole.startswith(prompt)
            else self.tokenizer.decode(tokens, skip_special_tokens=True)
        )
        ends = [at for string in stop if (at := text.find(string)) >= 0]
        return Completion(
            text=text[: min(ends)] if ends else text,
            tokens=len(row.tokens),
            finish="stop" if row.finish == "stop" else "length",
        )

    def _tokens(self, text: str) -> list[int]:
        begins = self.tokenizer.bos_token is not None and text.startswith(self.tokenizer.bos_token)
        return self.tokenizer(text, add_special_tokens=not begins)["input_ids"]

    def _encode(self, prompt: str) -> list[int]:
        tokens = self._tokens(prompt)
        if not tokens:
            raise TraceError("the prompt has no token; expected at least one")
        if len(tokens) >= self.context:
            raise TraceError(
                f"a prompt of {len(tokens)} tokens for a context of {self.context}; shorten it to at most "
                f"{self.context - 1}, or take a model with a longer context ({prompt[:40]!r} ...)"
            )
        return tokens

    def _first_token(self, prompt: str, tokens: list[int], option: str) -> int:
        """The option's first token where it follows the prompt; on its own, if the two would melt into one."""
        whole = self._tokens(prompt + option)
        if whole[: len(tokens)] == tokens and len(whole) > len(tokens):
            return whole[len(tokens)]
        alone = self.tokenizer(option, add_special_tokens=False)["input_ids"]
        if not alone:
            raise TraceError(f"option {option!r} has no token; expected at least one")
        return alone[0]

    def _left_padded(self, prompts: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "b t"], Int[Tensor, "b t"]]:
        """Token ids and attention mask, the prompts ending together."""
        longest = max(len(tokens) for tokens in prompts)
        ids = torch.zeros(len(prompts), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(prompts):
            ids[row, longest - len(tokens) :] = torch.tensor(tokens)
            mask[row, longest - len(tokens) :] = 1
        return ids.to(self.model.device), mask.to(self.model.device)


def _positions(mask: Int[Tensor, "b t"]) -> Int[Tensor, "b t"]:
    return (mask.cumsum(1) - 1).clamp(min=0)
