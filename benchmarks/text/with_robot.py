"""One text verifier and one robot GRM through the same `grm evaluate`: one table, the same functions.

A tiny language model learns chains of arithmetic modulo 7, and a judge on top of it is fitted on labelled steps (the
errors are known, nobody's opinion). The command then judges fresh solutions with it, and with the packaged GRM, adapted
to one demonstration, the episodes of a robot task that no shipped weight has seen:

    grm evaluate --data EPISODES solutions.jsonl --text-judge JUDGE --adapt 150 --stride 5 --out TABLE

Reported is what it wrote, one column for each; a metric that is not defined for one of them is absent there. Episodes
are those of `benchmarks.evaluation`, whose first lines say how they are collected.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from benchmarks.results import write_result
from envs.reasoning import Arithmetic, Habits, make_solutions
from envs.reasoning import LabelledSolution as Truth
from grm.data.stepwise import LabelledSolution, to_process_bench
from grm.text.conventions import TRL
from grm.text.discriminative import DiscriminativeJudge, fit_judge
from grm.text.tiny import FitSettings, Passage, fit_language_model, make_model, make_tokenizer

WORLD = Arithmetic(7)
LENGTHS = (2, 4)
CONVENTION = replace(TRL, opening="{bos}{question}\n")
HABITS = Habits(error_rate=0.15)


def draw(count: int, seed: int, *, right: bool = False) -> list[Truth]:
    habits = Habits() if right else HABITS
    return make_solutions(
        [WORLD], np.random.default_rng([seed, right]), count, lengths=LENGTHS, habits=habits, erroneous=0.0
    )


def labelled(one: Truth) -> LabelledSolution:
    """Labels up to the first error."""
    first = one.first_error
    labels = tuple(1.0 if first < 0 or i < first else 0.0 if i == first else None for i in range(len(one.steps)))
    return LabelledSolution(
        prompt=one.question,
        steps=one.steps,
        labels=labels,
        first_error=first,
        final_answer_correct=one.answer_right,
    )


def make_judge(options: argparse.Namespace) -> DiscriminativeJudge:
    right, examples = draw(options.solutions, 1, right=True), draw(options.solutions, 2)
    passages = [Passage(prompt=s.question + "\n", text="\n".join(s.steps)) for s in right]
    tokenizer = make_tokenizer([s.question + "\n" + "\n".join(s.steps) for s in (*right, *examples)])
    model = make_model(tokenizer, context=96)
    settings = FitSettings(steps=options.language_steps, batch=32)
    print(f"language learned to {fit_language_model(model, tokenizer, passages, settings):.3f} nats", flush=True)
    judge = DiscriminativeJudge.on_top_of(model, tokenizer, CONVENTION)
    settings = FitSettings(steps=options.fit_steps, batch=32, learning_rate=1e-3)
    print(f"steps learned to {fit_judge(judge, [labelled(s) for s in examples], settings):.3f} nats", flush=True)
    return judge


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/evaluation/held-out/door-unlock-v3"))
    parser.add_argument("--adapt", type=int, default=150)
    parser.add_argument("--stride", type=int, default=5)
    parser.add_argument("--solutions", type=int, default=8000, help="to learn from, of each kind")
    parser.add_argument("--language-steps", type=int, default=800)
    parser.add_argument("--fit-steps", type=int, default=1600)
    parser.add_argument("--tested", type=int, default=400, help="fresh solutions")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_judge(options).save_pretrained(folder / "judge")
        records = [to_process_bench(labelled(one)) for one in draw(options.tested, 3)]
        (folder / "arithmetic.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
        given = ["--text-judge", folder / "judge", "--adapt", options.adapt, "--stride", options.stride]
        command = ["evaluate", "--data", options.data, folder / "arithmetic.jsonl", *given, "--out", folder / "table"]
        subprocess.run([sys.executable, "-m", "grm", *map(str, command)], check=True)
        found = json.loads((folder / "table" / "evaluation.json").read_text())
    rows = [{"task": task, **numbers} for task, numbers in found["tasks"].items()]
    summary = {f"{row['task']}.{name}": value for row in rows for name, value in row.items() if name != "task"}
    evaluated = "grm evaluate --data EPISODES arithmetic.jsonl --text-judge JUDGE --adapt {} --stride {} --out TABLE"
    about = {"episodes": options.data.as_posix(), "evaluated_by": evaluated.format(options.adapt, options.stride)}
    print(write_result("text_and_robot", summary, seeds=[0], rows=rows, **about))


if __name__ == "__main__":
    main()
