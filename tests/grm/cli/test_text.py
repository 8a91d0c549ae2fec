import json
import socket
from pathlib import Path

import pytest

from grm.cli.text import annotate, models, search
from grm.text.conventions import TRL
from grm.text.huggingface import HuggingFaceModel

from ..text.models import Scripted
from ..text.test_endpoint import KEY, Server, chat, refuse
from ..text.tiny_judges import QUESTION, STEPS, judge, language_model, tokenizer
from .conftest import contents, grm

CHAINS = [
    {"id": "a", "problem": "p 1", "steps": ["x0 = 3", "x1 = 5", "x2 = (x0 * x1) mod 7 = 1"], "label": -1},
    {"id": "b", "problem": "p 2", "steps": ["x0 = 3", "x1 = x0 + 1 = 5", "x2 = x1 + 1 = 6"], "label": 1},
    {"id": "c", "problem": "p 3", "steps": ["well", "x0 = 3"], "label": -1},
]


def write(path: Path, records) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    return path


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def chains(tmp_path) -> Path:
    return write(tmp_path / "chains.jsonl", CHAINS)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("judges") / "trl"
    judge(TRL).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "lm"
    made = tokenizer()
    HuggingFaceModel(language_model(made, layers=1), made).save_pretrained(folder)
    return folder


# --- score ------------------------------------------------------------------------------------------------------------


def test_score_writes_numbers_and_a_page(tmp_path, chains, capsys):
    out = tmp_path / "out"
    assert grm("text", "score", chains, "--judge", "arithmetic", "--out", out) == 0
    found = lines(out / "scores.jsonl")
    assert [one["scores"] for one in found] == [[1, 1, 1], [1, 0, 1], [None, None]]
    assert [(one["kind"], one["aggregate"], one["first_error"]) for one in found] == [
        ("verdict", 1, -1),
        ("verdict", 0, 1),
        ("verdict", None, None),
    ]
    content = json.loads((out / "summary.json").read_text())
    assert content["command"] == f"grm text score --judge arithmetic {chains} --out {out}"
    assert content["summary"]["steps_abstained"] == 2
    assert content["summary"]["accuracy_on_right"] == 0.5, "an abstention is no finding"
    assert "steps without a score (abstained)" in capsys.readouterr().out
    assert "judge: first error" in (out / "index.html").read_text()


def test_score_goes_on_and_judges_nothing_twice(tmp_path, chains, monkeypatch, capsys):
    from grm.text import scoring

    out, asked = tmp_path / "out", []
    original = scoring.judge_all

    def dying(model, questions):
        if asked:
            raise KeyboardInterrupt
        asked.append(len(questions))
        return original(model, questions)

    given = ("text", "score", chains, "--judge", "arithmetic", "--out", out, "--batch", 1)
    with monkeypatch.context() as patch:
        patch.setattr(scoring, "judge_all", dying)
        assert grm(*given) == 130
    assert "1 of 3 solutions are kept" in capsys.readouterr().out
    assert not (out / "scores.jsonl").exists()
    seen = []
    monkeypatch.setattr(scoring, "judge_all", lambda m, q: seen.append(len(q)) or original(m, q))
    assert grm(*given, "--resume") == 0
    assert sum(seen) == 2
    assert len(lines(out / "scores.jsonl")) == 3


def test_score_leaves_out_what_it_cannot_read_or_ask(tmp_path, checkpoint, capsys):
    steps = [STEPS[0], f"{STEPS[1]}\nand a separator inside"]
    data = write(tmp_path / "d.jsonl", [{"problem": QUESTION, "steps": STEPS[:2]}, {"problem": "p", "steps": steps}])
    with data.open("a") as file:
        file.write("{not json\n" + json.dumps({"problem": "p", "steps": ["a", " "]}) + "\n")
    assert grm("text", "score", data, "--judge", checkpoint, "--out", tmp_path / "out") == 1
    said = capsys.readouterr()
    assert said.err.count("left out:") == 3
    for words in ("line 3: not JSON", "step 1 is blank", "holds the tag"):
        assert words in said.err
    [one] = lines(tmp_path / "out" / "scores.jsonl")
    assert (one["kind"], len(one["scores"])) == ("correctness", 2)
    assert len(json.loads((tmp_path / "out" / "summary.json").read_text())["left_out"]) == 3


def test_a_solution_longer_than_the_context_is_judged_as_far_as_it_fits(tmp_path, checkpoint):
    data = write(tmp_path / "d.jsonl", [{"problem": QUESTION, "steps": [STEPS[0]] * 60}])
    assert grm("text", "score", data, "--judge", checkpoint, "--out", tmp_path / "out") == 0
    [one] = lines(tmp_path / "out" / "scores.jsonl")
    assert one["scores"][0] is not None
    assert one["scores"][-1] is None
    assert one["aggregate"] is None


@pytest.mark.parametrize("method", ["thinkprm", "genorm", "genprm"])
def test_score_by_a_verifier_whose_critiques_cannot_be_read(tmp_path, chains, monkeypatch, method, capsys):
    model = Scripted(lambda prompt, k: "hm " * 5000)
    monkeypatch.setattr(models, "load_language_model", lambda *given: model)
    out = tmp_path / "out"
    assert grm("text", "score", chains, "--judge", "endpoint:m", "--method", method, "--out", out) == 0
    assert all(one["aggregate"] is None for one in lines(out / "scores.jsonl"))
    assert "critiques that could not be read" in capsys.readouterr().out


def test_what_is_wrong_with_the_question(refused, tmp_path, chains, checkpoint, monkeypatch):
    out = tmp_path / "out"
    given = ("text", "score", chains, "--out", out)
    assert "no judge is named" in refused(*given)
    assert "no file is named" in refused("text", "score", "--judge", "arithmetic", "--out", out)
    missing = tmp_path / "missing.jsonl"
    assert "cannot be read" in refused("text", "score", missing, "--judge", "arithmetic", "--out", out)
    assert "name a convention" in refused(*given, "--judge", tmp_path)
    assert "no judge at" in refused(*given, "--judge", tmp_path, "--convention", "trl")
    assert "no convention 'x'" in refused(*given, "--judge", checkpoint, "--convention", "x")
    assert "gives no scores of steps" in refused(*given, "--judge", "endpoint:m", "--method", "disprm")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert "OPENAI_API_KEY is not set" in refused(*given, "--judge", "endpoint:m")
    assert "threshold 2.0" in refused(*given, "--judge", "arithmetic", "--threshold", 2)
    assert not out.exists()
    assert "last of scores of kind verdict" in refused(*given, "--judge", "arithmetic", "--aggregate", "last")


def test_other_settings_do_not_mix(refused, tmp_path, chains):
    given = ("text", "score", chains, "--judge", "arithmetic", "--out", tmp_path / "out")
    assert grm(*given) == 0
    assert "exists already" in refused(*given)
    assert "other threshold" in refused(*given, "--threshold", 0.3, "--resume")


def test_an_endpoint_that_is_down_is_one_error(refused, tmp_path, chains):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    given = ("--judge", "endpoint:m", "--url", url, "--key-variable", "none", "--attempts", 1)
    assert url in refused("text", "score", chains, "--out", tmp_path / "out", *given)


# --- bench ------------------------------------------------------------------------------------------------------------


def test_bench_counts_what_a_judge_computes(tmp_path, chains, checkpoint, capsys):
    data = write(tmp_path / "d.jsonl", [{"problem": QUESTION, "steps": STEPS[:n], "label": n - 3} for n in (2, 3, 5)])
    out = tmp_path / "out"
    assert grm("text", "bench", data, "--judge", checkpoint, "--rounds", 2, "--out", out) == 0
    found = json.loads((out / "summary.json").read_text())
    speed, network = found["speed"], judge(TRL)
    tokens = [network.asker.ask(QUESTION, STEPS[:n]).reads[-1] + 1 for n in (2, 3, 5)]
    assert speed["passes per solution"] == 1
    assert speed["tokens read per solution"] == pytest.approx(sum(tokens) / 3, abs=1e-5)
    assert speed["tokens read step by step / tokens read at once"] == 1, "no token is read twice"
    assert speed["steps per second"] == pytest.approx(speed["solutions per second"] * 10 / 3, rel=1e-4)
    assert "first_error_f1" in found["summary"]
    assert "passes per solution" in capsys.readouterr().out
    out = tmp_path / "arithmetic"
    assert grm("text", "bench", chains, "--judge", "arithmetic", "--out", out) == 0
    assert "passes per solution" not in json.loads((out / "summary.json").read_text())["speed"], "it does not count"


def test_bench_asks_an_endpoint_once(tmp_path, chains, monkeypatch):
    model = Scripted(lambda prompt, k: r"\boxed{incorrect}")
    monkeypatch.setattr(models, "load_language_model", lambda *given: model)
    out = tmp_path / "out"
    given = ("--judge", "endpoint:m", "--method", "genprm", "--out", out)
    assert grm("text", "bench", chains, *given) == 0
    assert model.usage.calls == sum(len(one["steps"]) for one in CHAINS)


def test_bench_refuses(refused, tmp_path, chains):
    given = ("text", "bench", chains, "--judge", "arithmetic", "--out", tmp_path / "out")
    assert "rounds 0" in refused(*given, "--rounds", 0)
    assert not (tmp_path / "out").exists()


# --- train ------------------------------------------------------------------------------------------------------------


def test_train_makes_a_judge_that_score_reads(tmp_path, backbone, capsys):
    records = [
        {"prompt": f"{QUESTION} {k % 6}", "completions": STEPS[:2], "labels": [True, bool(k % 2)]} for k in range(12)
    ]
    data, out = write(tmp_path / "d.jsonl", records), tmp_path / "judge"
    given = ("text", "train", data, "--backbone", backbone, "--out", out, "--steps", 2, "--batch", 2)
    assert grm(*given, "--validation", 0.5) == 0
    said = capsys.readouterr().out
    assert "6 solutions to train on, 6 to validate" in said
    content = json.loads((out / "training.json").read_text())
    assert content["validation"]["solutions"] == 6
    assert content["kind"] == "correctness"
    before = contents(out)["head.safetensors"]
    assert grm(*given, "--validation", 0.5, "--resume") == 0
    assert contents(out)["head.safetensors"] == before, "a finished run has nothing left to learn"
    assert grm("text", "score", data, "--judge", out, "--out", tmp_path / "scores") == 0


def test_a_judge_trained_from_both_ends_is_read_as_one(refused, tmp_path, backbone):
    records = [{"prompt": f"{QUESTION} {k}", "completions": STEPS[:2], "labels": [True, bool(k % 2)]} for k in range(6)]
    data, out = write(tmp_path / "d.jsonl", records), tmp_path / "judge"
    given = ("--backbone", backbone, "--bidirectional", "--steps", 1, "--batch", 2, "--validation", 0)
    assert grm("text", "train", data, *given, "--out", out) == 0
    for method in ("auto", "bidirectional", "disprm"):
        assert grm("text", "score", data, "--judge", out, "--method", method, "--out", tmp_path / method) == 0
    scores = {m: lines(tmp_path / m / "scores.jsonl")[0]["scores"] for m in ("auto", "bidirectional", "disprm")}
    assert scores["auto"] == scores["bidirectional"] != scores["disprm"]
    search = ("text", "search", data, "--policy", backbone, "--how", "beam", "--judge", out, "--out", tmp_path / "s")
    assert "judges finished solutions only" in refused(*search)


def test_train_refuses(refused, tmp_path, backbone):
    steps = [f"{STEPS[0]}\n{STEPS[1]}"]
    data = write(tmp_path / "d.jsonl", [{"prompt": "p", "completions": steps, "labels": [True]}])
    given = ("text", "train", data, "--out", tmp_path / "out", "--steps", 1)
    message = refused(*given, "--backbone", backbone, "--validation", 0)
    assert "1 of 1 solutions cannot be asked by this convention" in message
    assert "no causal language model" in refused(*given, "--backbone", tmp_path)
    assert "validation 1.0" in refused(*given, "--backbone", backbone, "--validation", 1)
    assert not (tmp_path / "out").exists()


def test_all_solutions_of_a_problem_are_on_one_side():
    from grm.cli.text.train import split
    from grm.data.stepwise import LabelledSolution

    solutions = [LabelledSolution(prompt=f"p{k % 5}", steps=("a",), labels=(1.0,)) for k in range(20)]
    training, held = split(solutions, 0.2)
    assert {one.prompt for one in held} == {"p4"}
    assert len(training) == 16
    assert split(solutions, 0) == (solutions, [])


# --- annotate ---------------------------------------------------------------------------------------------------------


def test_annotate_by_rollouts_is_resumable_at_the_item(tmp_path, monkeypatch, capsys):
    model = Scripted(lambda prompt, k: "The answer is: 1" if k or "x1" in prompt else "The answer is: 2")
    monkeypatch.setattr(annotate, "load_language_model", lambda *given: model)
    records = [{"problem": f"p {k}", "steps": ["x0 = 1", "x1 = 1"], "answer": "1"} for k in range(3)]
    data = write(tmp_path / "d.jsonl", [*records, {"problem": "q", "steps": ["a"]}])
    out = tmp_path / "out"
    given = ("text", "annotate", data, "--model", "m", "--rollouts", 2, "--out", out)
    generate, calls = model.generate, []

    def dying(prompts, **settings):
        calls.append(len(prompts))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return generate(prompts, **settings)

    monkeypatch.setattr(model, "generate", dying)
    assert grm(*given) == 130
    assert "1 of 4 labellings are kept" in capsys.readouterr().out
    assert grm(*given, "--resume") == 1, "one has no answer to compare with"
    assert len(calls) == 4, "what was labelled is not asked again"
    said = capsys.readouterr()
    assert "answer is not known" in said.err
    found = lines(out / "labels.jsonl")
    assert [one["labels"] for one in found] == [[0.5, 1.0]] * 3
    content = json.loads((out / "summary.json").read_text())
    assert content["summary"]["written"] == 3
    assert content["cost"]["calls"] == 12


def test_what_an_endpoint_answered_before_it_failed_is_kept(refused, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    records = [{"problem": f"p {k}", "steps": ["x0 = 1"], "answer": "1"} for k in range(3)]
    data, out = write(tmp_path / "d.jsonl", records), tmp_path / "out"
    given = ("text", "annotate", data, "--model", "endpoint:m", "--rollouts", 2, "--concurrency", 1, "--out", out)
    fine = chat("The answer is: 1")
    with Server(fine, fine, fine, refuse(401)) as server:
        assert "--resume goes on" in refused(*given, "--url", server.url)
        assert len(server.asked) == 4
    with Server(fine) as server:
        assert grm(*given, "--url", server.url, "--resume") == 0
        assert len(server.asked) == 3, "of six rollouts three were paid for"
    assert [one["labels"] for one in lines(out / "labels.jsonl")] == [[True]] * 3
    assert all(KEY.encode() not in content for content in contents(out).values())


def test_annotate_by_a_judge_and_by_consensus(tmp_path, chains, monkeypatch):
    out = tmp_path / "judge"
    assert grm("text", "annotate", chains, "--how", "judge", "--judge", "arithmetic", "--out", out) == 0
    assert [one["labels"] for one in lines(out / "labels.jsonl")] == [[True] * 3, [True, False]]
    assert json.loads((out / "summary.json").read_text())["summary"]["without a label, not written"] == 1
    assert "first_error" not in lines(out / "labels.jsonl")[0]

    model = Scripted(lambda prompt, k: "The answer is: 1" if "p 1" in prompt else "The answer is: 2")
    monkeypatch.setattr(annotate, "load_language_model", lambda *given: model)
    data = write(tmp_path / "d.jsonl", [{**one, "answer": "1"} for one in CHAINS[:2]])
    data.write_text(data.read_text().replace('"label"', '"unused"'))
    out = tmp_path / "consensus"
    given = ("--how", "consensus", "--judge", "arithmetic", "--model", "m", "--rollouts", 1, "--to", "process-bench")
    assert grm("text", "annotate", data, *given, "--out", out) == 0
    [kept] = lines(out / "labels.jsonl")
    assert (kept["problem"], kept["label"]) == ("p 1", -1)
    assert json.loads((out / "summary.json").read_text())["summary"]["kept, share"] == 0.5


def test_annotate_against_references(tmp_path, chains, monkeypatch):
    grades = '[{"student_step": 1, "label": "CORRECT"}, {"student_step": 2, "label": "INCORRECT"}]'
    monkeypatch.setattr(annotate, "load_language_model", lambda *given: Scripted(lambda prompt, k: grades))
    references = write(tmp_path / "r.jsonl", [{"problem": "p 2", "steps": ["x0 = 3", "x1 = 4"]}])
    out = tmp_path / "out"
    given = ("--how", "spare", "--model", "m", "--references", references)
    assert grm("text", "annotate", chains, *given, "--out", out) == 1
    assert [one["labels"] for one in lines(out / "labels.jsonl")] == [[True, False]]


def test_annotate_refuses(refused, tmp_path, chains):
    given = ("text", "annotate", chains, "--out", tmp_path / "out")
    assert "without --model" in refused(*given)
    assert "no judge is named" in refused(*given, "--how", "judge")
    assert "holds no soft labels" in refused(*given, "--to", "prm800k")
    assert "names no problem" in refused(*given, "--prompt", "solve it")
    assert not (tmp_path / "out").exists()


# --- search -----------------------------------------------------------------------------------------------------------

WRONG = "x0 = 3\n\nx1 = x0 + 1 = 5\n\nx2 = x1 + 0 = 5"
GOOD = "x0 = 3\n\nx1 = x0 + 1 = 4\n\nx2 = x1 + 0 = 4"


@pytest.fixture
def policy(monkeypatch) -> Scripted:
    """Right in the second of three; its answers are boxed in a name that arithmetic can read."""
    model = Scripted(lambda prompt, k: GOOD if k == 1 else WRONG)
    monkeypatch.setattr(search, "load_language_model", lambda *given: model)
    monkeypatch.setattr(search, "extract_answer", lambda text: text.split()[-1] if "x2" in text else None)
    return model


@pytest.fixture
def questions(tmp_path) -> Path:
    return write(tmp_path / "q.jsonl", [{"question": "p", "answer": "so\n#### 4"}, {"question": "q", "answer": "4"}])


@pytest.mark.parametrize(("how", "right"), [("best-of-n", 1.0), ("weighted-vote", 1.0), ("majority-vote", 0.0)])
def test_search_chooses(tmp_path, policy, questions, how, right):
    out = tmp_path / "out"
    given = () if how == "majority-vote" else ("--judge", "arithmetic")
    assert grm("text", "search", questions, "--policy", "m", "--how", how, "--n", 3, *given, "--out", out) == 0
    summary = json.loads((out / "summary.json").read_text())["summary"]
    assert summary["right, share of those answered"] == right
    assert summary["right among the candidates, share"] == 1
    assert [one["answer"] for one in lines(out / "answers.jsonl")] == ["4" if right else "5"] * 2
    assert (out / "index.html").exists() == bool(given)


def test_search_by_beam(tmp_path, policy, questions):
    steps = {0: ["x0 = 3", "x0 = 3"], 1: ["x1 = x0 + 1 = 5", "x1 = x0 + 1 = 4"], 2: ["x2 = x1 + 0 = 4"] * 2}
    policy._says = lambda prompt, k: steps[prompt.count(" = 3") + prompt.count("x1 =")][k % 2]
    out = tmp_path / "out"
    given = ("--policy", "m", "--how", "beam", "--beams", 1, "--expansions", 2, "--judge", "arithmetic")
    assert grm("text", "search", questions, *given, "--out", out) == 0
    assert [one["steps"][1] for one in lines(out / "answers.jsonl")] == ["x1 = x0 + 1 = 4"] * 2
    assert json.loads((out / "summary.json").read_text())["summary"]["judged / judged without reuse of prefixes"] < 1


def test_search_that_nobody_can_decide_has_no_answer(tmp_path, policy, questions):
    policy._says = lambda prompt, k: "well\n\nhm x2"
    out = tmp_path / "out"
    assert grm("text", "search", questions, "--policy", "m", "--judge", "arithmetic", "--n", 2, "--out", out) == 0
    summary = json.loads((out / "summary.json").read_text())["summary"]
    assert summary["questions without an answer (abstained)"] == 2
    assert summary["candidates without a score (abstained)"] == 4
    assert "right, share of those answered" not in summary
    assert all(one["answer"] is None and one["right"] is None for one in lines(out / "answers.jsonl"))


def test_search_refuses(refused, tmp_path, policy, questions):
    given = ("text", "search", questions, "--policy", "m", "--out", tmp_path / "out")
    assert "no judge is named" in refused(*given)
    assert "expected at least 1" in refused(*given, "--judge", "arithmetic", "--n", 0)
    odd = write(tmp_path / "odd.jsonl", [{"text": "p"}])
    message = refused("text", "search", odd, "--policy", "m", "--judge", "arithmetic", "--out", tmp_path / "out")
    assert "odd.jsonl, line 1: no question (text)" in message
    assert not (tmp_path / "out").exists()
