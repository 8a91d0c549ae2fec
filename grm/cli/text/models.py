"""Which judge and which language model: a folder, a Hub id, an endpoint, or arithmetic."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...errors import CheckpointError, TraceError
from ...reward import Judge, Thought
from ...text.language import LanguageModel, Usage

ARITHMETIC = "arithmetic"
ENDPOINT = "endpoint:"
CRITIQUE_TOKENS = 2048
"""Of an endpoint's critique."""
_CLOSING = 64
"""Tokens kept free for the question after a critique."""

type Method = Literal["auto", "disprm", "disorm", "genprm", "genorm", "thinkprm"]


@dataclass(frozen=True, kw_only=True)
class Endpoints:
    """How models are reached and run; what does not change their answers."""

    url: str = "https://api.openai.com/v1"
    """Of the OpenAI-compatible endpoint behind `endpoint:NAME`."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds its key; `none` for one that wants none. The key is never written anywhere."""
    api: Literal["chat", "completions"] = "chat"
    """`completions` continues a text letter for letter, which models trained on their own format need."""
    concurrency: int = 8
    """Requests at once."""
    timeout_s: float = 120.0
    """Of one request."""
    attempts: int = 6
    """Of one request, after failures that may pass."""
    price_prompt: float = 0.0
    """Per million tokens read, to count what was spent."""
    price_completion: float = 0.0
    """Per million tokens written."""
    device: str = "cpu"
    """Where local models run, such as `cuda`."""


@dataclass(frozen=True, kw_only=True)
class Judging(Endpoints):
    """Which judge, and how it is asked."""

    judge: str = ""
    """A checkpoint's folder or Hub id, `endpoint:NAME` for a model behind `--url`, or `arithmetic`, which recomputes
    steps such as `x2 = (x0 * x1) mod 7 = 1`."""
    method: Method = "auto"
    """disprm: a head scores every step; disorm: only the solution. genprm: a language model criticises every step,
    genorm: the solution, thinkprm: all steps in one chain. auto: thinkprm for an endpoint, else disprm."""
    convention: str = ""
    """How a checkpoint wants to be asked: qwen, math-shepherd, skywork, rlhflow or trl; found where it says so."""
    samples: int = 1
    """Critiques per solution, or per step (genprm)."""
    critique_tokens: int | None = None
    """Of one critique; by default a quarter of a local model's context, 2048 at an endpoint."""


def hush() -> None:
    """One progress bar is enough: ours."""
    from ...text.tiny import import_transformers

    import_transformers().utils.logging.disable_progress_bar()


def load_language_model(model: str, settings: Endpoints, journal: Path | None) -> LanguageModel:
    """The model at an endpoint, whose answers are kept in `journal`, or in a folder, or on the Hub."""
    if not model.startswith(ENDPOINT):
        from ...text.huggingface import HuggingFaceModel

        hush()
        return HuggingFaceModel.from_pretrained(model, device=settings.device)
    from ...text.endpoint import EndpointError, EndpointModel, Prices

    key = None if settings.key_variable == "none" else settings.key_variable
    if key is not None and not os.environ.get(key, "").strip():
        raise EndpointError(
            f"the environment variable {key} is not set; expected the key of {settings.url} in it (--key-variable NAME "
            f"for another one, --key-variable none for an endpoint that wants none)"
        )
    name = model.removeprefix(ENDPOINT)
    if not name:
        raise CheckpointError(f"{model!r} names no model; expected {ENDPOINT}NAME, as {settings.url} calls it")
    return EndpointModel(
        name,
        url=settings.url,
        key_variable=key,
        api=settings.api,
        journal=journal,
        prices=Prices(prompt=settings.price_prompt, completion=settings.price_completion),
        concurrency=settings.concurrency,
        timeout_s=settings.timeout_s,
        attempts=settings.attempts,
    )


def load_text_judge(settings: Judging, journal: Path | None = None) -> Judge[Thought]:
    """The judge that was asked for. Raises `CheckpointError` if there is none, `TraceError` if it is asked wrongly."""
    if not settings.judge:
        raise CheckpointError(
            f"no judge is named; expected --judge with a checkpoint's folder or Hub id, {ENDPOINT}NAME, or {ARITHMETIC}"
        )
    method = settings.method
    if settings.judge == ARITHMETIC:
        from ...text.arithmetic import ArithmeticJudge

        if method != "auto":
            raise TraceError(f"--method {method} for the arithmetic judge; expected none (it computes)")
        return ArithmeticJudge()
    at_endpoint = settings.judge.startswith(ENDPOINT)
    if method == "auto":
        method = "thinkprm" if at_endpoint else "disprm"
    if method in ("disprm", "disorm"):
        if at_endpoint:
            raise TraceError(f"--method {method} at an endpoint, which gives no scores of steps; expected a checkpoint")
        from ...text.discriminative import DiscriminativeJudge, DisORM

        hush()
        judge = DiscriminativeJudge.from_pretrained(settings.judge, settings.convention or None, device=settings.device)
        return judge if method == "disprm" else DisORM(judge)
    if settings.convention:
        raise TraceError(f"--convention {settings.convention} for {method}; expected it for disprm and disorm only")
    from ...text.generative import GenORM, GenPRM, ThinkPRM

    model = load_language_model(settings.judge, settings, journal)
    verifier = {"genprm": GenPRM, "genorm": GenORM, "thinkprm": ThinkPRM}[method]
    tokens, fits = _room(model, settings.critique_tokens)
    return verifier(model, samples=settings.samples, max_tokens=tokens, fits=fits)


def usage_of(*models: object) -> Usage | None:
    """What a judge or language model counted; None if none of them counts."""
    for model in models:
        inner = getattr(model, "network", model)  # of an outcome judge
        for owner in (model, inner, getattr(model, "_model", None)):
            usage = getattr(owner, "usage", None)
            if isinstance(usage, Usage):
                return usage
    return None


def spent(usage: Usage | None) -> str:
    """What it took, in words; empty if nobody counted."""
    if usage is None or not (usage.calls or usage.prompt_tokens):
        return ""
    said = f"{usage.calls:,} calls, {usage.prompt_tokens:,} tokens read, {usage.completion_tokens:,} written"
    cost, resumed = getattr(usage, "cost", 0.0), getattr(usage, "resumed", 0)
    return said + (f", {resumed:,} answers known before" if resumed else "") + (f", cost {cost:.4f}" if cost else "")


def _room(model: LanguageModel, tokens: int | None) -> tuple[int, Callable[[str], bool] | None]:
    """Tokens of a critique, and whether a prompt leaves room for it and for the question at its end."""
    context: Any = getattr(model, "context", None)
    if context is None:  # an endpoint says so itself
        return CRITIQUE_TOKENS if tokens is None else tokens, None
    budget = context // 4 if tokens is None else tokens
    tokenizer: Any = getattr(model, "tokenizer")  # noqa: B009

    def fits(prompt: str) -> bool:
        return len(tokenizer(prompt)["input_ids"]) + budget + _CLOSING <= context

    return budget, fits
