import numpy as np
import pytest
import torch

from grm.errors import CheckpointError, TraceError
from grm.text.huggingface import HuggingFaceModel
from grm.text.language import LanguageModel
from grm.text.tiny import make_model, make_tokenizer

TEXTS = ["mod 7 : 3 + 4 * 2\n3 + 4 = 0\n0 * 2 = 0\nanswer 0 1 2 5 6"]
PROMPTS = ["mod 7 : 3 + 4\n", "3 + 4 =", "mod 7 : 3 + 4 * 2 * 2\n3 + 4 = 0\n", "mod"]


@pytest.fixture(scope="module")
def model():
    tokenizer = make_tokenizer(TEXTS)
    network = make_model(tokenizer, width=32, context=64, seed=3)
    with torch.no_grad():  # untrained logits are nearly flat: ties would hang on rounding
        network.lm_head.weight *= 20
    return HuggingFaceModel(network, tokenizer)


def protocol(model: LanguageModel) -> LanguageModel:
    return model


def test_it_is_a_language_model(model):
    assert protocol(model) is model


def test_what_a_prompt_leaves_of_the_context(model):
    room = model.room(PROMPTS[0])
    assert 0 < room < model.context
    [[completion]] = model.generate([PROMPTS[0]], max_tokens=room)
    assert completion.tokens <= room
    assert model.room(f"<s>{PROMPTS[0]}") == room, "a beginning that is written out is not put before it again"
    assert model.room("mod " * 100) == 0


def by_hand(model, prompt, count):
    """Greedy continuation, one whole forward per token."""
    ids = model.tokenizer(prompt, return_tensors="pt")["input_ids"]
    for _ in range(count):
        with torch.no_grad():
            ids = torch.cat([ids, model.model(ids).logits[:, -1:].argmax(-1)], 1)
        if ids[0, -1] == model.tokenizer.eos_token_id:
            break
    return ids[0]


def test_greedy_is_the_likeliest_token_each_time(model):
    for prompt, [completion] in zip(PROMPTS, model.generate(PROMPTS, max_tokens=12), strict=True):
        ids = by_hand(model, prompt, 12)
        assert prompt + completion.text == model.tokenizer.decode(ids, skip_special_tokens=True)
        assert completion.tokens == len(ids) - len(model.tokenizer(prompt)["input_ids"])
        assert completion.finish == ("stop" if ids[-1] == model.tokenizer.eos_token_id else "length")


def test_a_draw_is_its_own(model):
    """The same, whatever else is asked, however it is batched."""
    settings = {"samples": 3, "max_tokens": 10, "temperature": 1.5, "seed": 4}
    together = model.generate(PROMPTS, **settings)
    assert together == model.generate(PROMPTS, **settings)
    assert together != model.generate(PROMPTS, **(settings | {"seed": 5}))
    assert together[0] == model.generate(PROMPTS[:1], **settings)[0]
    assert len({completion.text for completion in together[0]}) > 1, "samples differ"
    assert [c[:2] for c in together] == model.generate(PROMPTS, **(settings | {"samples": 2}))
    small = HuggingFaceModel(model.model, model.tokenizer, batch=2)
    assert small.generate(PROMPTS, **settings) == together


def test_draws_follow_the_distribution(model):
    [completions] = model.generate(["3 +"], samples=2000, max_tokens=1, temperature=2.0)
    found = np.array([sum(c.text.strip() == w for c in completions) for w in ("0", "1", "2", "7")]) / 2000
    with torch.no_grad():
        logits = model.model(model.tokenizer("3 +", return_tensors="pt")["input_ids"]).logits[0, -1] / 2
    ids = model.tokenizer.convert_tokens_to_ids(["0", "1", "2", "7"])
    np.testing.assert_allclose(found, logits.softmax(-1)[ids], atol=0.04)


def test_it_ends_at_the_first_stop_string(model):
    free = model.generate(PROMPTS, max_tokens=20)
    for prompt, [whole], [cut] in zip(
        PROMPTS, free, model.generate(PROMPTS, max_tokens=20, stop=["=", "7"]), strict=True
    ):
        ends = [at for stop in "=7" if (at := whole.text.find(stop)) >= 0]
        if not ends:
            assert cut == whole
            continue
        assert cut.text == whole.text[: min(ends)], prompt
        assert cut.finish == "stop"
        made = model.tokenizer.convert_ids_to_tokens(by_hand(model, prompt, cut.tokens)[-cut.tokens :])
        assert made[-1] in ("=", "7"), "the stop string's token is counted"
        assert not {"=", "7"} & set(made[:-1])


def test_stop_strings_are_met_in_this_model(model):
    assert any("=" in c.text or "7" in c.text for [c] in model.generate(PROMPTS, max_tokens=20))


def test_usage_counts_each_prompt_read_once(model):
    counted = HuggingFaceModel(model.model, model.tokenizer)
    [completions] = counted.generate(["3 + 4 ="], samples=5, max_tokens=3, temperature=1.0)
    assert counted.usage.calls == 5
    assert counted.usage.prompt_tokens == 5
    assert counted.usage.completion_tokens == sum(c.tokens for c in completions)
    counted.choices(["3 + 4 =", "3"], ["0", "1"])
    assert counted.usage.calls == 7
    assert counted.usage.prompt_tokens == 5 + 5 + 2


def test_choices_are_the_model_s_chances(model):
    options = ["0", "1", "answer 2"]
    chances = model.choices(PROMPTS, options)
    assert chances.shape == (4, 3)
    np.testing.assert_allclose(chances.sum(1), 1)
    ids = model.tokenizer.convert_tokens_to_ids(["0", "1", "answer"])
    for prompt, found in zip(PROMPTS, chances, strict=True):
        with torch.no_grad():
            logits = model.model(model.tokenizer(prompt, return_tensors="pt")["input_ids"]).logits[0, -1, ids]
        np.testing.assert_allclose(found, logits.softmax(-1), atol=1e-5)
    with pytest.raises(TraceError, match="first token"):
        model.choices(PROMPTS, ["answer 1", "answer 2"])
    with pytest.raises(TraceError, match="at least one"):
        model.choices(PROMPTS, [])


def test_the_context_ends(model):
    long = "3 + 4 " * 20
    [[completion]] = model.generate([long], max_tokens=50)
    assert completion.tokens <= 64 - 61
    if completion.tokens == 3:
        assert completion.finish == "length"
    with pytest.raises(TraceError, match="shorten it to at most 63"):
        model.generate(["3", long + long])
    with pytest.raises(TraceError, match="shorten it to at most 63"):
        model.choices([long + long], ["0", "1"])


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1.0}, {"samples": 0}, {"max_tokens": 0}, {"stop": ["", "x"]}], ids=str
)
def test_malformed_requests(model, wrong):
    with pytest.raises(TraceError, match="expected"):
        model.generate(["3"], **wrong)


def test_no_prompts_no_completions(model):
    assert model.generate([]) == []
    assert model.choices([], ["0"]).shape == (0, 1)


def test_saved_and_loaded(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = HuggingFaceModel.from_pretrained(tmp_path)
    assert loaded.generate(PROMPTS, max_tokens=8) == model.generate(PROMPTS, max_tokens=8)
    np.testing.assert_allclose(loaded.choices(PROMPTS, ["0", "1"]), model.choices(PROMPTS, ["0", "1"]), atol=1e-6)


def test_nothing_to_load(tmp_path):
    with pytest.raises(CheckpointError, match="expected a folder"):
        HuggingFaceModel.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="expected a folder"):
        HuggingFaceModel.from_pretrained(tmp_path / "missing")
