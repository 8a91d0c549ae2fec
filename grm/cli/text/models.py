"""Which judge and which language model: a folder, a Hub id, an endpoint, or arithmetic."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...errors import CheckpointError, TraceError
from ...reward import Judge, Thought
from ...text.language import LanguageModel, Metered

ARITHMETIC = "arithmetic"
ENDPOINT = "endpoint:"
CRITIQUE_TOKENS = 2048
"""Of an endpoint's critique."""
_CLOSING = 64
"""Tokens kept free for the question after a critique."""

type Method = Literal["auto", "disprm", "disorm", "bidirectional", "genprm", "genorm", "thinkprm"]


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
    """disprm: a head scores every step; disorm: only the solution; bidirectional: every step, read from both ends.
    genprm: a language model criticises every step, genorm: the solution, thinkprm: all steps in one chain. auto:
    thinkprm for an endpoint, else what the checkpoint was trained as."""
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
        both = (Path(settings.judge) / "bidirectional.json").exists()
        method = "thinkprm" if at_endpoint else "bidirectional" if both else "disprm"
    if method in ("disprm", "disorm", "bidirectional"):
        if at_endpoint:
            raise TraceError(f"--method {method} at an endpoint, which gives no scores of steps; expected a checkpoint")
        from ...text.bidirectional import BidirectionalJudge
        from ...text.discriminative import DiscriminativeJudge, DisORM

        hush()
        if method == "bidirectional":
            if settings.convention:
                raise TraceError(f"--convention {settings.convention} for {method}; expected none, its folder says so")
            return BidirectionalJudge.from_pretrained(settings.judge, device=settings.device)
        judge = DiscriminativeJudge.from_pretrained(settings.judge, settings.convention or None, device=settings.device)
        return judge if method == "disprm" else DisORM(judge)
    if settings.convention:
        raise TraceError(f"--convention {settings.convention} for {method}; expected it for disprm and disorm only")
    from ...text.generative import GenORM, GenPRM, ThinkPRM

    model = load_language_model(settings.judge, settings, journal)
    verifier = {"genprm": GenPRM, "genorm": GenORM, "thinkprm": ThinkPRM}[method]
    whole = model.room("")
    budget = settings.critique_tokens
    if budget is None:
        budget = CRITIQUE_TOKENS if whole is None else whole // 4

    def fits(prompt: str) -> bool:
        room = model.room(prompt)
        return room is None or room >= budget + _CLOSING

    return verifier(model, samples=settings.samples, max_tokens=budget, fits=fits)


def spent(model: object) -> str:
    """What a judge or language model took, in words; empty if it does not count, or took nothing."""
    usage = model.usage if isinstance(model, Metered) else None
    return str(usage) if usage is not None and (usage.calls or usage.prompt_tokens) else ""
