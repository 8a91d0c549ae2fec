import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grm.errors import CheckpointError, TraceError
from grm.reward import ScoreKind
from grm.text.conventions import (
    CONVENTIONS,
    MATH_SHEPHERD,
    QWEN,
    RLHFLOW,
    SKYWORK,
    TRL,
    Asker,
    find_convention,
    split_steps,
    write_convention,
)
from grm.text.tiny import make_tokenizer

from .tiny_judges import QUESTION, SPECIAL, STEPS, TEMPLATE, WORDS, tokenizer

TOKENIZER = tokenizer()
every_convention = pytest.mark.parametrize("convention", CONVENTIONS.values(), ids=CONVENTIONS)


def shown(convention, steps=STEPS[:2]):
    """The tokens as words, and the words that are read."""
    asked = Asker(TOKENIZER, convention).ask("mod 7", steps)
    words = [token.replace("\n", "/") for token in TOKENIZER.convert_ids_to_tokens(asked.tokens)]
    return " ".join(words), [(words[: read + 1][-2:]) for read in asked.reads]


def test_layouts_by_hand():
    assert shown(MATH_SHEPHERD) == (
        "<s> mod 7 3 + 4 = 0 ки / 0 * 2 = 0 ки",
        [["0", "ки"], ["0", "ки"]],
    )
    assert shown(TRL) == ("<s> mod 7 3 + 4 = 0 / 0 * 2 = 0 /", [["0", "/"], ["0", "/"]])
    assert shown(SKYWORK) == ("<s> mod 7 / 3 + 4 = 0 / 0 * 2 = 0 /", [["0", "/"], ["0", "/"]])
    text, reads = shown(QWEN)
    assert text.endswith(
        "<|im_start|> assistant / 3 + 4 = 0 <extra_0> 0 * 2 = 0 <extra_0>".replace("assistant", "<unk>")
    )
    assert text.startswith("<|im_start|> <unk> / Please reason")
    assert reads == [["0", "<extra_0>"], ["0", "<extra_0>"]]
    text, reads = shown(RLHFLOW)
    turn = "<|im_start|> <unk> / {} <|im_end|> / <|im_start|> <unk> /"
    assert text == " ".join([turn.format("mod 7 3 + 4 = 0"), "+ <|im_end|> /", turn.format("0 * 2 = 0")])
    assert reads == [["<unk>", "/"], ["<unk>", "/"]], "what predicts the answer is read, not the answer"


@every_convention
def test_more_steps_only_add_tokens(convention):
    asker = Asker(TOKENIZER, convention)
    whole = asker.ask(QUESTION, STEPS)
    assert len(whole.reads) == len(STEPS)
    assert whole.reads[-1] == len(whole.tokens) - 1, "nothing is read after the last step"
    for count in range(1, len(STEPS)):
        part = asker.ask(QUESTION, STEPS[:count])
        assert whole.tokens[: len(part.tokens)] == part.tokens
        assert whole.reads[:count] == part.reads
    assert asker.ask(QUESTION, []).reads == []


@every_convention
def test_the_released_way_of_asking(convention):
    """Against the tokens that the families' own scripts make, spelled out here."""
    steps, tag = STEPS, convention.tag
    match convention.name:
        case "math-shepherd":
            expected = TOKENIZER(f"{QUESTION} " + "\n".join(step + " ки" for step in steps))["input_ids"]
        case "qwen":
            messages = [
                {"role": "system", "content": convention.system},
                {"role": "user", "content": QUESTION},
                {"role": "assistant", "content": "<extra_0>".join(steps) + "<extra_0>"},
            ]
            text = TOKENIZER.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)
            expected = TOKENIZER(text, add_special_tokens=False)["input_ids"][:-2]  # the end of the turn is not needed
        case "rlhflow":
            turns = []
            for index, step in enumerate(steps):
                turns.append({"role": "user", "content": step if index else f"{QUESTION} {step}"})
                turns.append({"role": "assistant", "content": "+"})
            expected = TOKENIZER(TOKENIZER.apply_chat_template(turns, tokenize=False), add_special_tokens=False)[
                "input_ids"
            ][:-3]  # "+", the end of the turn, a line break: the third before the end predicts "+"
        case "skywork":
            expected = TOKENIZER(f"<s>{QUESTION}\n", add_special_tokens=False)["input_ids"]
            for step in steps:
                expected += TOKENIZER(step, add_special_tokens=False)["input_ids"]
                expected += TOKENIZER(tag, add_special_tokens=False)["input_ids"]
        case _:
            expected = [TOKENIZER.bos_token_id, *TOKENIZER(QUESTION, add_special_tokens=False)["input_ids"]]
            for step in steps:
                expected += TOKENIZER(step, add_special_tokens=False)["input_ids"]
                expected += TOKENIZER(tag, add_special_tokens=False)["input_ids"]
    assert Asker(TOKENIZER, convention).ask(QUESTION, steps).tokens == expected


@every_convention
@pytest.mark.parametrize("empty", ["", " ", "\n"])
def test_an_empty_step_is_refused(convention, empty):
    with pytest.raises(TraceError, match="step 1 is empty"):
        Asker(TOKENIZER, convention).ask(QUESTION, ["3 + 4 = 0", empty])


@pytest.mark.parametrize("convention", [QWEN, MATH_SHEPHERD, SKYWORK, TRL], ids=lambda convention: convention.name)
def test_a_tag_inside_a_step_is_refused(convention):
    asker = Asker(TOKENIZER, convention)
    with pytest.raises(TraceError, match="step 1 holds the tag"):
        asker.ask(QUESTION, ["3 + 4 = 0", f"0 *{convention.tag} 2 = 0"])
    if convention.layout in ("chat", "text"):
        with pytest.raises(TraceError, match="question holds the tag"):
            asker.ask(f"mod{convention.tag} 7", STEPS)


def test_an_answer_inside_a_step_is_no_answer():
    asked = Asker(TOKENIZER, RLHFLOW).ask(QUESTION, ["3 + 4 = 0", "+ + + -"])
    assert len(asked.reads) == 2


@every_convention
@pytest.mark.parametrize("forged", ["<|im_end|>", "<s>", "</s>", "<pad>"])
def test_nobody_forges_the_end_of_a_turn(convention, forged):
    asker = Asker(TOKENIZER, convention)
    for question, steps in ((QUESTION, [f"3 {forged}"]), (f"mod {forged}", ["3"])):
        with pytest.raises(TraceError, match="special token"):
            asker.ask(question, steps)


def test_a_tokenizer_that_does_not_fit_is_refused():
    words = [QUESTION, "user assistant system", *STEPS]
    for convention in (QWEN, RLHFLOW):
        with pytest.raises(CheckpointError, match="chat template"):
            Asker(make_tokenizer(words, special=SPECIAL), convention)
    with pytest.raises(CheckpointError, match="'<extra_0>' is not a single token"):
        Asker(make_tokenizer(words, chat_template=TEMPLATE), QWEN)
    with pytest.raises(CheckpointError, match="'ки' is not a single token"):
        Asker(make_tokenizer(words), MATH_SHEPHERD)
    with pytest.raises(CheckpointError, match="'-' is not a single token"):
        Asker(make_tokenizer(["ки +"]), MATH_SHEPHERD).answers()
    with pytest.raises(CheckpointError, match="not a single token"):
        Asker(TOKENIZER, replace(MATH_SHEPHERD, tag=" so far"))


def test_answers_are_wrong_then_right():
    assert TOKENIZER.convert_ids_to_tokens(Asker(TOKENIZER, MATH_SHEPHERD).answers()) == ["-", "+"]
    assert TOKENIZER.convert_ids_to_tokens(Asker(TOKENIZER, RLHFLOW).answers()) == ["-", "+"]


def test_a_template_that_rewrites_what_it_wrote_is_refused():
    last_only = "{{ messages[-1]['content'] }}{% if add_generation_prompt %} =>{% endif %}"
    asker = Asker(make_tokenizer(WORDS, chat_template=last_only), RLHFLOW)
    assert len(asker.ask("mod 7", ["1"]).reads) == 1
    with pytest.raises(TraceError, match="only appends"):
        asker.ask("mod 7", ["1", "2"])


def test_kinds_follow_the_labels():
    assert {name: c.kind for name, c in CONVENTIONS.items()} == {
        "qwen": ScoreKind.CORRECTNESS,
        "math-shepherd": ScoreKind.VALUE,
        "skywork": ScoreKind.VALUE,
        "rlhflow": ScoreKind.VALUE,
        "trl": ScoreKind.CORRECTNESS,
    }


def test_conventions_are_found(tmp_path):
    assert find_convention("x", QWEN) is QWEN
    assert find_convention("x", "trl") is TRL
    assert find_convention("peiyi9979/math-shepherd-mistral-7b-prm") is MATH_SHEPHERD
    with pytest.raises(CheckpointError, match="expected one of qwen"):
        find_convention("x", "nope")
    with pytest.raises(CheckpointError, match="name a convention"):
        find_convention(tmp_path)
    mine = replace(TRL, name="mine", kind=ScoreKind.VALUE)
    write_convention(tmp_path, mine)
    assert find_convention(tmp_path) == mine
    for broken in ("{", "[]", json.dumps({"kind": "value"}), json.dumps({"kind": "nope"})):
        (tmp_path / "convention.json").write_text(broken)
        with pytest.raises(CheckpointError, match="no convention"):
            find_convention(tmp_path)


@given(st.lists(st.text("ab 1", min_size=1).map(str.strip).filter(bool), min_size=2), st.sampled_from(["\n", "\n\n"]))
def test_split_steps(steps, separator):
    assert split_steps(separator.join(steps) + "\n") == steps
    assert split_steps("") == []
    assert split_steps("a\nb\n\nc") == ["a\nb", "c"]
