import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grm.data import stepwise
from grm.data.stepwise import (
    LabelledSolution,
    first_error_of,
    from_math_shepherd,
    from_prm800k,
    from_process_bench,
    from_rlhflow,
    from_trl,
    harden,
    labelled_part,
    read_math_shepherd,
    read_prm800k,
    read_process_bench,
    read_trl,
    to_math_shepherd,
    to_prm800k,
    to_process_bench,
    to_rlhflow,
    to_trl,
    until_first_error,
    write_trl,
)
from grm.errors import TraceError

HARD = st.sampled_from([0.0, 1.0])
words = st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda text: text.strip() == text and stepwise.TAG not in text and "step 1" not in text.lower()
)


@st.composite
def solutions(draw, label=HARD):
    texts = draw(st.lists(words, min_size=1, max_size=6))
    labels = tuple(draw(label) for _ in texts)
    steps = tuple(f"Step {i}: {text}" for i, text in enumerate(texts, 1))
    hard = all(one in (0, 1) for one in labels)
    return LabelledSolution(
        prompt=draw(words), steps=steps, labels=labels, first_error=first_error_of(labels) if hard else None
    )


def solution(*labels: float | None, **known) -> LabelledSolution:
    steps = tuple(f"Step {i}: s{i}" for i in range(1, len(labels) + 1))
    return LabelledSolution(prompt="Why?", steps=steps, labels=labels, **known)


# The record


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"labels": (1.0,)}, "1 labels for 2 steps"),
        ({"steps": ("a", " \n")}, "step 1 is blank"),
        ({"labels": (1.0, 1.5)}, r"label 1 is 1\.5"),
        ({"labels": (1.0, float("nan"))}, "label 1 is nan"),
        ({"first_error": 2}, "first_error is 2 in 2 steps"),
        ({"first_error": -2}, "first_error is -2"),
        ({"first_error": 0}, "no 1 there"),
        ({"labels": (1.0, 0.0), "first_error": -1}, "none that is 0"),
    ],
)
def test_a_record_that_contradicts_itself_is_refused(fields, message):
    known = {"prompt": "p", "steps": ("a", "b"), "labels": (1.0, 1.0)} | fields
    with pytest.raises(TraceError, match=message):
        LabelledSolution(**known)


def test_first_error_of_labels():
    assert first_error_of([1, 1]) == -1
    assert first_error_of([1, 0, None]) == 1
    assert first_error_of([1, None, 0]) is None, "the step before might be wrong too"
    assert first_error_of([1, None]) is None
    with pytest.raises(TraceError, match=r"label 1 is 0\.5"):
        first_error_of([1, 0.5])


def test_harden_is_right_above_the_threshold():
    soft = solution(1.0, 0.125, 0.0, None)
    assert harden(soft, 0).labels == (1, 1, 0, None)
    assert harden(soft, 0).first_error == 2
    assert harden(soft, 0.125).labels == (1, 0, 0, None)
    with pytest.raises(TraceError, match="threshold is 1"):
        harden(soft, 1)


def test_what_comes_after_the_first_error_is_cut():
    assert until_first_error(solution(1, 0, 1)) == solution(1, 0)
    assert until_first_error(solution(0.7, 0.1, 0.9, first_error=1)) == solution(0.7, 0.1, first_error=1)
    assert until_first_error(solution(1, 1)) == solution(1, 1)
    with pytest.raises(TraceError, match="without a label"):
        until_first_error(solution(None, 0))
    assert labelled_part(solution(1, 0.2, None, 1)) == solution(1, 0.2)
    assert labelled_part(solution(1, None, 0, first_error=2)).first_error == -1


# There and back


@given(solutions(label=st.floats(0, 1)))
def test_trl_there_and_back(one):
    item = json.loads(json.dumps(to_trl(one)))
    assert from_trl(item) == one


@given(solutions(label=st.sampled_from([0.0, 1.0, None])))
def test_prm800k_there_and_back(one):
    one = replace(one, source="prm800k", first_error=first_error_of(one.labels))
    assert from_prm800k(json.loads(json.dumps(to_prm800k(one))), neutral="wrong") == [one]


@given(solutions())
def test_math_shepherd_there_and_back(one):
    assert from_math_shepherd(json.loads(json.dumps(to_math_shepherd(one)))) == one


@given(solutions())
def test_rlhflow_there_and_back(one):
    assert from_rlhflow(json.loads(json.dumps(to_rlhflow(one)))) == one


@given(solutions())
def test_process_bench_there_and_back(one):
    first = one.first_error
    assert first is not None
    masked = tuple(None if 0 <= first < i else label for i, label in enumerate(one.labels))
    assert from_process_bench(json.loads(json.dumps(to_process_bench(one)))) == replace(one, labels=masked)


@given(solutions(label=st.floats(0, 1)), st.floats(0, 0.99))
def test_every_hard_format_agrees_on_hardened_labels(one, threshold):
    want = harden(one, threshold)
    assert from_math_shepherd(to_math_shepherd(one, threshold=threshold)).labels == want.labels
    assert from_rlhflow(to_rlhflow(one, threshold=threshold)).labels == want.labels
    assert from_prm800k(to_prm800k(one, threshold=threshold), neutral="right")[0].labels == want.labels
    assert from_process_bench(to_process_bench(one, threshold=threshold)).first_error == want.first_error
    assert from_trl(to_trl(one, threshold=threshold)).labels == want.labels


@pytest.mark.parametrize("write", [to_prm800k, to_math_shepherd, to_process_bench, to_rlhflow])
def test_soft_labels_are_refused_by_hard_formats(write):
    with pytest.raises(TraceError, match="threshold"):
        write(solution(1.0, 0.9))


@pytest.mark.parametrize("write", [to_trl, to_math_shepherd, to_rlhflow])
def test_a_step_without_a_label_is_refused_where_it_has_no_place(write):
    with pytest.raises(TraceError, match="step 1 has no label"):
        write(solution(1.0, None, first_error=-1))


# As published


def test_trl_labels_stay_what_they_are():
    assert to_trl(solution(1.0, 0.0))["labels"] == [True, False]
    assert to_trl(solution(1.0, 0.5))["labels"] == [1.0, 0.5]
    known = solution(0.9, 0.5, answer="4", final_answer_correct=False, first_error=1, source="x", generator="me")
    assert from_trl(to_trl(known)) == known
    assert set(to_trl(solution(1.0, 0.0))) == {"prompt", "completions", "labels"}


MATH_SHEPHERD = {
    "input": "How many eggs? Step 1: 16 a day. ки\nStep 2: 16 - 3 = 12. ки\nStep 3: The answer is: 12 ки",
    "label": "How many eggs? Step 1: 16 a day. +\nStep 2: 16 - 3 = 12. -\nStep 3: The answer is: 12 -",
    "task": "GSM8K",
}


def test_math_shepherd_as_published():
    one = from_math_shepherd(MATH_SHEPHERD)
    assert one.prompt == "How many eggs?"
    assert one.steps == ("Step 1: 16 a day.", "Step 2: 16 - 3 = 12.", "Step 3: The answer is: 12")
    assert one.labels == (1, 0, 0)
    assert one.first_error == 1
    assert to_math_shepherd(one) == MATH_SHEPHERD


@pytest.mark.parametrize(
    ("text", "prompt", "steps", "labels"),
    [
        ("Eggs? 3 a day. ки\nStep 2: 9 ки", "Eggs?", ("3 a day.", "Step 2: 9"), (1, 1)),
        ("Eggs. step 1: 3 a day. ки", "Eggs.", ("step 1: 3 a day.",), (1,)),
        ("Eggs? Or ки not? Step 1: 3 ки Step 2: 9 ки", "Eggs? Or not?", ("Step 1: 3", "Step 2: 9"), (1, 1)),
        ("Eggs.\n\nThree. ки", "Eggs.", ("Three.",), (1,)),
    ],
)
def test_math_shepherd_lines_that_are_not_as_the_others(text, prompt, steps, labels):
    one = from_math_shepherd({"input": text, "label": text.replace("ки", "+")})
    assert (one.prompt, one.steps, one.labels) == (prompt, steps, labels)


def test_math_shepherd_a_step_that_nothing_closes_has_no_label():
    item = {key: text + "\nStep 4: and" for key, text in MATH_SHEPHERD.items()}
    assert from_math_shepherd(item).labels == (1, 0, 0, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": MATH_SHEPHERD["label"].replace("16 - 3", "16 - 4")}, "differ in step 1"),
        ({"label": MATH_SHEPHERD["label"].replace("= 12. -", "= 12. ки")}, "differ in step 1"),
        ({"label": MATH_SHEPHERD["label"] + " so"}, "differ after the last of 3"),
        ({"input": "Eggs? ки", "label": "Eggs? +"}, "no 'Step 1:'"),
        ({"input": "Eggs? How? 3 ки", "label": "Eggs? How? 3 +"}, "no 'Step 1:'"),
        ({"label": None}, "label is 'None'"),
    ],
)
def test_math_shepherd_texts_must_run_in_parallel(change, message):
    with pytest.raises(TraceError, match=message):
        from_math_shepherd(MATH_SHEPHERD | change)


def test_the_tag_inside_a_step_is_refused_and_steps_are_numbered():
    with pytest.raises(TraceError, match="step 0 contains the tag"):
        to_math_shepherd(LabelledSolution(prompt="p", steps=("so ки",), labels=(1.0,)))
    with pytest.raises(TraceError, match="the problem contains the tag"):
        to_math_shepherd(LabelledSolution(prompt="p ки", steps=("so",), labels=(1.0,)))
    with pytest.raises(TraceError, match="the problem contains 'Step 1:'"):
        to_rlhflow(LabelledSolution(prompt="p Step 1: x", steps=("so",), labels=(1.0,)))
    bare = LabelledSolution(prompt="p", steps=("a", "b"), labels=(1.0, 0.0))
    assert from_math_shepherd(to_math_shepherd(bare)).steps == ("Step 1: a", "Step 2: b")


def prm800k(*steps, **question):
    return {
        "labeler": "x",
        "question": {"problem": "p", "ground_truth_answer": "4"} | question,
        "label": {"steps": list(steps), "finish_reason": "solution"},
    }


def step(*rated, chosen=None, human=None):
    completions = [{"text": text, "rating": rating, "flagged": False} for text, rating in rated]
    return {"completions": completions, "chosen_completion": chosen, "human_completion": human}


def test_prm800k_phase_1_branches():
    item = prm800k(
        step(("a", 1), ("b", -1), ("c", 0), chosen=0),
        step(("d", -1), human={"text": "written", "rating": None}),
        step(("e", 0), ("f", None), chosen=0),
    )
    found = {"".join(one.steps): one.labels for one in from_prm800k(item, neutral="wrong")}
    assert found == {
        "b": (0,),
        "c": (0,),
        "ad": (1, 0),
        "awrittenf": (1, 1, None),
        "awrittene": (1, 1, 0),
    }
    kept = {"".join(one.steps): one for one in from_prm800k(item, neutral="right")}
    assert kept["awrittene"].labels == (1, 1, 1)
    assert kept["awrittene"].first_error == -1
    unsure = {"".join(one.steps): one for one in from_prm800k(item, neutral="unlabelled")}
    assert unsure["c"].labels == (None,)
    assert unsure["c"].first_error is None


def test_prm800k_phase_2_ends_at_the_first_mistake():
    item = prm800k(step(("a", 1), chosen=0), step(("b", -1), ("c", 1)), pre_generated_steps=["a", "b"])
    found = from_prm800k(item, neutral="wrong")
    assert [(one.steps, one.first_error) for one in found] == [(("a", "b"), 1), (("a", "c"), -1)]
    assert [one.final_answer_correct for one in found] == [None, None]


def test_prm800k_a_step_without_anything_ends_the_branch():
    nothing = {"completions": None, "chosen_completion": None, "human_completion": None}
    found = from_prm800k(prm800k(step(("a", 1), ("b", -1), chosen=0), nothing), neutral="wrong")
    assert [one.steps for one in found] == [("b",), ("a",)]


def test_prm800k_says_whether_the_answer_is_right_where_it_can():
    item = prm800k(
        step(("a", 1), chosen=0), step(("b", 1), chosen=0), pre_generated_steps=["a", "b"], pre_generated_answer="4"
    )
    [one] = from_prm800k(item, neutral="wrong")
    assert one.final_answer_correct is True
    item["question"]["pre_generated_answer"] = "4.0"
    assert from_prm800k(item, neutral="wrong")[0].final_answer_correct is None


@pytest.mark.parametrize("bad", [step(("a", 2)), step(("a", 1), chosen=1), {"completions": [{"rating": 1}]}])
def test_prm800k_refuses_what_it_is_not(bad):
    with pytest.raises(TraceError):
        from_prm800k(prm800k(bad), neutral="wrong")


def test_process_bench_as_published():
    item = {"id": "gsm8k-0", "generator": "Qwen", "problem": "p", "steps": ["a", "b", "c"]}
    item |= {"final_answer_correct": False, "label": 1}
    one = from_process_bench(item)
    assert one.labels == (1, 0, None)
    assert to_process_bench(one) == item
    assert from_process_bench(item | {"label": -1}).labels == (1, 1, 1)
    assert from_process_bench(item | {"label": 0}).labels == (0, None, None)
    for label in (3, -2, True, "1"):
        with pytest.raises(TraceError, match="label is"):
            from_process_bench(item | {"label": label})


def test_rlhflow_as_published():
    turns = [("user", "Eggs? Step 1: 16"), ("assistant", "+"), ("user", "Step 2: 12"), ("assistant", "-")]
    item = {"conversations": [{"role": role, "content": content} for role, content in turns]}
    one = from_rlhflow(item)
    assert (one.prompt, one.steps, one.labels) == ("Eggs?", ("Step 1: 16", "Step 2: 12"), (1, 0))
    assert to_rlhflow(one) == item
    item["conversations"][3]["content"] = "maybe"
    with pytest.raises(TraceError, match="the reply to step 1 is 'maybe'"):
        from_rlhflow(item)
    with pytest.raises(TraceError, match="roles"):
        from_rlhflow({"conversations": item["conversations"][:3]})


# Files


def test_files_stream_and_name_their_bad_lines(tmp_path):
    path = tmp_path / "math.jsonl"
    lines = [json.dumps(MATH_SHEPHERD), "", "{broken", json.dumps([1]), json.dumps(MATH_SHEPHERD)]
    path.write_text("\n".join(lines), encoding="utf-8")
    reader = read_math_shepherd(path)
    assert next(reader).first_error == 1, "the good line comes before the bad one is looked at"
    with pytest.raises(TraceError, match=r"math\.jsonl, line 3: not JSON"):
        next(reader)
    broken: list[TraceError] = []
    assert len(list(read_math_shepherd(path, broken=broken))) == 2
    assert [str(error).split(": ")[0].rsplit(", ")[1] for error in broken] == ["line 3", "line 4"]


def test_a_line_of_another_format_is_named(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(MATH_SHEPHERD) + "\n")
    for read in (read_trl, read_process_bench):
        with pytest.raises(TraceError, match="line 1"):
            list(read(path))
    with pytest.raises(TraceError, match="line 1"):
        list(read_prm800k(path, neutral="wrong"))


def test_process_bench_as_one_list(tmp_path):
    items = [to_process_bench(solution(1, 0)), to_process_bench(solution(1, 1))]
    path = tmp_path / "gsm8k.json"
    path.write_text(json.dumps(items, indent=1))
    assert [one.first_error for one in read_process_bench(path)] == [1, -1]
    path.write_text(json.dumps([*items, 3]))
    with pytest.raises(TraceError, match="item 3"):
        list(read_process_bench(path))


@pytest.mark.parametrize("name", ["trl", "math_shepherd", "process_bench", "rlhflow", "prm800k"])
def test_writing_and_reading_a_file(tmp_path, name):
    path = tmp_path / "out.jsonl"
    kept = [solution(1, 1, first_error=-1), solution(1, 0, first_error=1)]
    assert getattr(stepwise, f"write_{name}")(path, kept) == 2
    options = {"neutral": "wrong"} if name == "prm800k" else {}
    back = list(getattr(stepwise, f"read_{name}")(path, **options))
    assert [replace(one, source="") for one in back] == kept


def test_a_refused_solution_leaves_no_half_file(tmp_path):
    with pytest.raises(TraceError):
        write_trl(tmp_path / "out.jsonl", [solution(1, 1), solution(None)])
    assert list(tmp_path.iterdir()) == []


# --- whichever format it is -------------------------------------------------------------------------------------------


def test_each_record_says_which_format_it_is(tmp_path):
    one = LabelledSolution(prompt="2 + 2?", steps=("Step 1: 2", "Step 2: 4"), labels=(1.0, 1.0), first_error=-1)
    records = [
        stepwise.to_trl(one),
        stepwise.to_prm800k(one),
        stepwise.to_math_shepherd(one),
        stepwise.to_process_bench(one),
        stepwise.to_rlhflow(one),
        {"question": "2 + 2?", "output": "Step 1: 2\n\nStep 2: 4"},
        {"problem": "2 + 2?", "solution": "Step 1: 2\nStep 2: 4", "answer": "4"},
    ]
    formats = [stepwise.find_format(record) for record in records]
    assert formats == ["trl", "prm800k", "math-shepherd", "process-bench", "rlhflow", "unlabelled", "unlabelled"]
    path = tmp_path / "mixed.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    found = list(stepwise.read_solutions(path))
    assert [(f.prompt, f.steps) for f in found] == [("2 + 2?", one.steps)] * len(records)
    assert [f.labels for f in found] == [(1.0, 1.0)] * 5 + [(None, None)] * 2
    assert found[-1].answer == "4"


def test_a_record_of_no_format_names_what_it_has(tmp_path):
    path = tmp_path / "odd.jsonl"
    path.write_text('{"text": "hm", "score": 1}\n{"prompt": "p", "completions": ["a"], "labels": [true]}\n')
    with pytest.raises(TraceError, match=r"odd\.jsonl, line 1: a record with names score, text; expected prompt"):
        list(stepwise.read_solutions(path))
    broken = []
    assert len(list(stepwise.read_solutions(path, broken=broken))) == 1
    assert len(broken) == 1


def test_files_that_are_none(tmp_path):
    with pytest.raises(TraceError, match=r"missing\.jsonl cannot be read"):
        list(stepwise.read_solutions(tmp_path / "missing.jsonl"))
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(TraceError, match="holds no solution"):
        list(stepwise.read_solutions(tmp_path / "empty.jsonl"))
