"""Small causal language models, made and trained here from scratch in minutes on a CPU.

They are transformers' own classes with tiny configurations and a word-level tokenizer built on the spot, so whatever
works with them works with a checkpoint of the same classes. One loop trains all of them, judges included.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import CheckpointError, DivergedError, MissingExtraError, OutputError, TraceError

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

BEGIN, END, PAD, UNKNOWN = "<s>", "</s>", "<pad>", "<unk>"


def import_transformers() -> Any:
    """The module. Raises `MissingExtraError` if it is not installed."""
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"language models need {error.name}; install it with `pip install 'grm-robotics[text]'`"
        ) from error
    return transformers


def make_tokenizer(
    texts: Iterable[str], *, special: Sequence[str] = (), chat_template: str | None = None
) -> PreTrainedTokenizerFast:
    """A token per word, number, symbol or line break: whatever stands between spaces; nothing else is ever one.

    Text whose words are separated by single spaces, and lines by bare breaks, decodes to itself. `special` tokens
    need no spaces around them. The vocabulary is that of the texts in order of first use. Raises `TraceError` if the
    texts hold no word.
    """
    transformers = import_transformers()
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

    fixed = [PAD, BEGIN, END, UNKNOWN, *special]
    split = pre_tokenizers.Split(Regex(r"\n|[^\s]+"), behavior="removed", invert=True)
    words: dict[str, None] = {}
    for text in texts:
        for token in special:
            text = text.replace(token, " ")
        words |= dict.fromkeys(word for word, _ in split.pre_tokenize_str(text))
    if not words:
        raise TraceError("the texts hold no word; expected the texts that the model is to learn")
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*fixed, *words]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = split  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [
            decoders.WordPiece(prefix="\0", cleanup=False),  # no word begins with it: a space before every word
            decoders.Fuse(),
            decoders.Replace(" \n", "\n"),
            decoders.Replace("\n ", "\n"),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, vocabulary[BEGIN])]
    )
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNKNOWN,
        additional_special_tokens=list(special),
        clean_up_tokenization_spaces=False,
    )
    if chat_template is not None:
        made.chat_template = chat_template
    return made


def make_model(
    tokenizer: PreTrainedTokenizerFast,
    *,
    width: int = 64,
    layers: int = 2,
    heads: int = 4,
    context: int = 256,
    seed: int = 0,
) -> LlamaForCausalLM:
    """A Llama for the tokenizer's vocabulary with random weights: 0.1 M parameters and the embeddings, by default."""
    transformers = import_transformers()
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=context,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return transformers.LlamaForCausalLM(config).eval()


@dataclass(frozen=True, slots=True, kw_only=True)
class FitSettings:
    """Everything a fit depends on besides the network, the loss and the examples."""

    steps: int = 1000
    """Gradient steps."""
    batch: int = 64
    """Examples per step."""
    learning_rate: float = 2e-3
    """Peak, after a warm-up of a twentieth of the steps; it falls to a tenth by a cosine."""
    weight_decay: float = 0.01
    seed: int = 0


class Fit[T]:
    """The one training loop. `run` may be interrupted at any step, saved, loaded and gone on with.

    The draw of examples and the learning rate depend on the seed and the step alone, so a resumed run does what an
    uninterrupted one would have. `loss` maps a batch of examples to a scalar tensor. Raises `TraceError` without
    examples.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Callable[[Sequence[T]], Tensor],
        examples: Sequence[T],
        settings: FitSettings | None = None,
    ) -> None:
        if not examples:
            raise TraceError("there are no examples to learn from; expected at least one")
        self.network, self.loss, self.examples = network, loss, examples
        self.settings = settings or FitSettings()
        self.done = 0
        """Gradient steps made."""
        self._parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self._optimizer = torch.optim.AdamW(
            self._parameters.values(), lr=self.settings.learning_rate, weight_decay=self.settings.weight_decay
        )

    def run(self, *, until: int | None = None, progress: Callable[[int, float], None] | None = None) -> float:
        """Train until step `until` (all of them by default), calling progress(step, loss) after each.

        Returns the mean loss of the last tenth of the steps made in this call; NaN if there was none to make. The
        network is left in evaluation mode, however this ends. Raises `DivergedError` if the loss is not finite, before
        the network is harmed.
        """
        until = self.settings.steps if until is None else min(until, self.settings.steps)
        losses: list[float] = []
        self.network.train()
        try:
            while self.done < until:
                rng = np.random.default_rng([self.settings.seed, self.done])
                picked = rng.choice(len(self.examples), size=self.settings.batch)
                for group in self._optimizer.param_groups:
                    group["lr"] = self.settings.learning_rate * self._warmth(self.done)
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(int(rng.integers(2**31)))  # dropout, if the network has any
                    loss = self.loss([self.examples[i] for i in picked])
                if not torch.isfinite(loss):
                    raise DivergedError(f"the loss is {loss.item()} at step {self.done}; try a lower learning rate")
                self._optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self._parameters.values(), 1.0)
                self._optimizer.step()
                self.done += 1
                losses.append(loss.item())
                if progress is not None:
                    progress(self.done, losses[-1])
        finally:
            self.network.eval()
        return float(np.mean(losses[-max(1, len(losses) // 10) :])) if losses else math.nan

    def _warmth(self, step: int) -> float:
        warm_up = max(1, self.settings.steps // 20)
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, self.settings.steps - warm_up)))

    def save(self, path: Path) -> None:
        """Write weights, moments and step, whole or not at all. Raises `OutputError` if that fails."""
        state = {f"network.{name}": tensor.detach() for name, tensor in self._parameters.items()}
        for name, parameter in self._parameters.items():
            for part, tensor in self._optimizer.state.get(parameter, {}).items():
                state[f"{part}.{name}"] = tensor
        path = Path(path)
        about = {"step": str(self.done), "settings": repr(asdict(self.settings))}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
                written = Path(scratch) / path.name
                safetensors.torch.save_file({n: t.contiguous() for n, t in state.items()}, written, about)
                written.replace(path)
        except (OSError, safetensors.SafetensorError) as error:
            raise OutputError(f"{path} cannot be written ({error}); choose another") from error

    def load(self, path: Path) -> None:
        """Go on where `save` left off. Raises `CheckpointError` if the file is not of this network and settings."""
        try:
            state = safetensors.torch.load_file(path)
            with safetensors.safe_open(path, "pt") as file:
                about = file.metadata() or {}
        except (OSError, safetensors.SafetensorError) as error:
            raise CheckpointError(f"{path} cannot be read ({error}); expected what `Fit.save` wrote") from error
        mine = {f"network.{name}": parameter.shape for name, parameter in self._parameters.items()}
        found = {name: tensor.shape for name, tensor in state.items() if name.startswith("network.")}
        if about.get("settings") != repr(asdict(self.settings)) or found != mine or "step" not in about:
            raise CheckpointError(
                f"{path} is of another fit ({about.get('settings', 'no settings')}, {len(found)} weights); expected "
                f"{asdict(self.settings)} and {len(mine)} weights of the same shapes"
            )
        self.done = int(about["step"])
        for name, parameter in self._parameters.items():
            parameter.data.copy_(state[f"network.{name}"])
            moments = {part: state[f"{part}.{name}"] for part in ("step", "exp_avg", "exp_avg_sq") if self.done}
            self._optimizer.state[parameter] = moments


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """A text of which only the second part is learned. A joint of the two needs its own space or line break."""

    prompt: str = ""
    """Read, but not learned."""
    text: str


def fit_language_model(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str | Passage],
    settings: FitSettings | None = None,
    *,
    progress: Callable[[int, float], None] | None = None,
) -> float:
    """Train on next tokens, the end included; returns the loss at the end, in nats per token. Changes the model.

    Raises `TraceError` for a text that is longer than the context, `DivergedError` if training diverges.
    """
    return language_model_fit(model, tokenizer, texts, settings).run(progress=progress)


def language_model_fit(
    model: Any, tokenizer: Any, texts: Sequence[str | Passage], settings: FitSettings | None = None
) -> Fit[tuple[Int[np.ndarray, " n"], int]]:
    """The fit that `fit_language_model` runs, for those who want to interrupt and resume it."""
    examples = [_tokens(tokenizer, text, model.config.max_position_embeddings) for text in texts]

    def loss(batch: Sequence[tuple[Int[np.ndarray, " n"], int]]) -> Float[Tensor, ""]:
        longest = max(len(tokens) for tokens, _ in batch)
        ids = np.full((len(batch), longest), tokenizer.pad_token_id)
        learned = np.zeros((len(batch), longest), bool)
        for row, (tokens, prompt) in enumerate(batch):
            ids[row, : len(tokens)] = tokens
            learned[row, prompt : len(tokens)] = True
        inputs = torch.from_numpy(ids).to(model.device)
        mask = torch.from_numpy(learned)[:, 1:].to(model.device)
        # Padding stands to the right, where causal attention never looks: no attention mask is needed.
        logits = model(input_ids=inputs[:, :-1], use_cache=False).logits
        return F.cross_entropy(logits[mask].float(), inputs[:, 1:][mask])

    return Fit(model, loss, examples, settings)


def _tokens(tokenizer: Any, text: str | Passage, context: int) -> tuple[Int[np.ndarray, " n"], int]:
    """Token ids with the end, and how many of them are the prompt's."""
    passage = text if isinstance(text, Passage) else Passage(text=text)
    whole = [*tokenizer(passage.prompt + passage.text)["input_ids"], tokenizer.eos_token_id]
    prompt = tokenizer(passage.prompt)["input_ids"] if passage.prompt else whole[:1]
    if whole[: len(prompt)] != prompt:
        raise TraceError(
            f"prompt {passage.prompt[-30:]!r} and text {passage.text[:30]!r} share a token; expected a prompt that "
            "ends where a token ends (after a space or a line break)"
        )
    if len(whole) > context + 1:
        raise TraceError(f"a text of {len(whole)} tokens for a context of {context}; shorten it, or widen the context")
    return np.array(whole), len(prompt)
