"""How much of a bare model's forward throughput batched scoring reaches, and whether it is one forward per solution.

Solutions of the reasoning worlds, 4 to 24 steps, are scored with `judge_all`: text to tokens,
batches by length, forward, head, judgements. In turn with it, so that a slow moment of a shared machine hits both, the
bare backbone's forward runs on the very batches that the judge made, tokens ready, with nothing read. Counted are
tokens of solutions (not padding) per second; a ratio is within one round, reported is the median over rounds. The
weights are random: they take as long as trained ones. The smallest model shows the fixed cost per solution, the larger
one what matters in use.
"""

import argparse
import platform
import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.results import write_result
from envs.reasoning import Arithmetic, Hops, Linear, make_solutions
from grm.text.conventions import CONVENTIONS
from grm.text.discriminative import DiscriminativeJudge
from grm.text.scoring import judge_all
from grm.text.tiny import make_model, make_tokenizer

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIZES = {"tiny": (64, 2), "small": (256, 6)}
"""Width and layers."""


def seconds(call: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(
    judge: DiscriminativeJudge, solutions: list[tuple[str, tuple[str, ...]]], rounds: int, device: str
) -> dict[str, float]:
    batches: list[torch.Tensor] = []
    forwards = 0

    def watch(module: object, args: object, kwargs: dict[str, torch.Tensor]) -> None:
        nonlocal forwards
        forwards += kwargs["input_ids"].shape[0]
        batches.append(kwargs["input_ids"])

    handle = judge.backbone.register_forward_pre_hook(watch, with_kwargs=True)
    before = judge.usage.prompt_tokens
    judge_all(judge, solutions)  # also the warm-up
    handle.remove()
    tokens = judge.usage.prompt_tokens - before

    @torch.inference_mode()
    def bare() -> None:
        for ids in batches:
            judge.backbone(input_ids=ids, use_cache=False)

    ratios, scoring = [], []
    bare()
    for _ in range(rounds):
        alone, whole = seconds(bare, device), seconds(lambda: judge_all(judge, solutions), device)
        ratios.append(alone / whole)
        scoring.append(tokens / whole)
    return {
        "ratio": float(np.median(ratios)),
        "tokens_per_s": float(np.median(scoring)),
        "forwards_per_solution": forwards / len(solutions),
        "padding": 1 - tokens / sum(ids.numel() for ids in batches),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--solutions", type=int, default=128)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    arguments = parser.parse_args()
    if arguments.device == "cpu":
        torch.set_num_threads(1)
    worlds = [Arithmetic(7), Linear(7), Hops()]
    made = make_solutions(worlds, np.random.default_rng(0), arguments.solutions, lengths=(4, 24))
    solutions = [(s.question, s.steps) for s in made]
    words = [f"{question}\n" + "\n".join(steps) for question, steps in solutions]
    words += ["ки + - system user assistant", *(c.system for c in CONVENTIONS.values() if c.system)]
    tokenizer = make_tokenizer(words, special=["<extra_0>", "<|im_start|>", "<|im_end|>"], chat_template=TEMPLATE)
    rows: list[dict[str, object]] = []
    summary: dict[str, float] = {}
    for size in arguments.sizes:
        width, layers = SIZES[size]
        model = make_model(tokenizer, width=width, layers=layers, heads=max(4, width // 64), context=2048)
        model = model.to(arguments.device)
        for convention in CONVENTIONS.values():
            judge = DiscriminativeJudge.on_top_of(model, tokenizer, convention)
            found = measure(judge, solutions, arguments.rounds, arguments.device)
            rows.append({"size": size, "convention": convention.name, **found})
            print(rows[-1], flush=True)
            summary |= {f"{size}_{convention.name}_{key}": value for key, value in found.items() if key != "padding"}
    write_result(
        "text_throughput" if arguments.device == "cpu" else "text_throughput_gpu",
        summary,
        seeds=[0],
        rows=rows,
        machine=platform.machine(),
        device=arguments.device,
        torch=torch.__version__,
    )


if __name__ == "__main__":
    main()
