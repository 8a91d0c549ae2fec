import builtins
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grm.errors import CheckpointError, DivergedError, MissingExtraError, OutputError, TraceError
from grm.text.tiny import (
    Fit,
    FitSettings,
    Passage,
    fit_language_model,
    import_transformers,
    language_model_fit,
    make_model,
    make_tokenizer,
)

WORDS = ["mod", "7", ":", "3", "+", "4", "=", "answer", "12", "<a>"]
TOKENIZER = make_tokenizer([" ".join(WORDS) + "\n"], special=["<tag>"])
COUNTING = [f"{i % 10} {(i + 1) % 10} {(i + 2) % 10}\n{(i + 3) % 10}" for i in range(10)]


@given(st.lists(st.lists(st.sampled_from(WORDS), min_size=1), min_size=1))
def test_text_survives_its_tokens(lines):
    text = "\n".join(" ".join(line) for line in lines)
    ids = TOKENIZER(text)["input_ids"]
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == text
    assert len(ids) == 1 + sum(map(len, lines)) + len(lines) - 1, "a token per word and line break, and the beginning"
    assert ids[0] == TOKENIZER.bos_token_id


def test_tokens_by_hand():
    assert TOKENIZER.tokenize("3 + 12<tag>mod\n7") == ["3", "+", "12", "<tag>", "mod", "\n", "7"]
    assert TOKENIZER.tokenize("13 +") == ["<unk>", "+"], "a number is never read as two"
    ids = [make_tokenizer(COUNTING).get_vocab() for _ in range(2)]
    assert ids[0] == ids[1]
    with pytest.raises(TraceError, match="no word"):
        make_tokenizer(["", "  "])


def test_models_are_seeded_and_leave_torch_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    one, two, other = (make_model(TOKENIZER, seed=seed) for seed in (1, 1, 2))
    assert torch.rand(1) == expected
    weights = [torch.cat([p.flatten() for p in m.parameters()]) for m in (one, two, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert one.config.vocab_size == len(TOKENIZER)
    assert not one.training


def test_a_model_learns_what_it_is_shown():
    tokenizer = make_tokenizer(COUNTING)
    model = make_model(tokenizer, width=32, layers=1, heads=2, context=16)
    heard = []
    loss = fit_language_model(
        model,
        tokenizer,
        [Passage(prompt=text[:2], text=text[2:]) for text in COUNTING],
        FitSettings(steps=150, batch=8, learning_rate=1e-2),
        progress=lambda step, loss: heard.append((step, loss)),
    )
    assert heard[0][1] > 2 > 0.1 > loss, "from chance, log(15), to certainty"
    assert [step for step, _ in heard] == list(range(1, 151))
    assert not model.training
    ids = torch.tensor([tokenizer("4 5")["input_ids"]])
    assert tokenizer.decode(model(ids).logits[0, -1].argmax()).strip() == "6"


def test_a_prompt_is_not_learned():
    """With the mask off it would be: the same data, and the loss of an impossible prompt stays out."""
    tokenizer = make_tokenizer(COUNTING)
    rng = np.random.default_rng(0)
    random = [" ".join(map(str, rng.integers(10, size=6))) + "\n" for _ in range(40)]
    settings = FitSettings(steps=60, batch=8, learning_rate=1e-2)
    losses = []
    for passages in (
        [Passage(prompt=prompt, text="7 7 7") for prompt in random],
        [Passage(text=prompt + "7 7 7") for prompt in random],
    ):
        model = make_model(tokenizer, width=32, layers=1, heads=2, context=16)
        losses.append(fit_language_model(model, tokenizer, passages, settings))
    assert losses[0] < 0.2
    assert losses[1] > 0.8


def test_an_interrupted_fit_goes_on_as_if_it_had_not_been(tmp_path):
    tokenizer = make_tokenizer(COUNTING)
    settings = FitSettings(steps=12, batch=4)
    models = [make_model(tokenizer, width=16, layers=1, heads=2) for _ in range(3)]
    whole, first, second = (language_model_fit(model, tokenizer, COUNTING, settings) for model in models)
    whole.run()

    def interrupt(step, loss):
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.run(progress=interrupt)
    assert first.done == 5
    assert not models[1].training
    first.save(tmp_path / "fit" / "half.safetensors")
    second.load(tmp_path / "fit" / "half.safetensors")
    assert second.done == 5
    second.run()
    assert second.done == 12
    for expected, found in zip(models[0].parameters(), models[2].parameters(), strict=True):
        assert torch.equal(expected, found)
    assert math.isnan(second.run())


def test_a_fit_refuses_what_is_not_its_own(tmp_path):
    tokenizer = make_tokenizer(COUNTING)
    small, wide = (make_model(tokenizer, width=width, layers=1, heads=2) for width in (16, 32))
    path = tmp_path / "fit.safetensors"
    language_model_fit(small, tokenizer, COUNTING, FitSettings(steps=2)).save(path)
    for model, settings in ((wide, FitSettings(steps=2)), (small, FitSettings(steps=3))):
        with pytest.raises(CheckpointError, match="another fit"):
            language_model_fit(model, tokenizer, COUNTING, settings).load(path)
    path.write_bytes(b"x")
    with pytest.raises(CheckpointError, match="cannot be read"):
        language_model_fit(small, tokenizer, COUNTING, FitSettings(steps=2)).load(path)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        language_model_fit(small, tokenizer, COUNTING).save(tmp_path / "file" / "fit.safetensors")


def test_a_fit_stops_before_it_does_harm():
    network = torch.nn.Linear(1, 1)
    losses = itertools.chain([network.weight.sum()], itertools.repeat(torch.tensor(float("nan"))))
    fit = Fit(network, lambda batch: next(losses), [0], FitSettings(steps=3))
    with pytest.raises(DivergedError, match="at step 1"):
        fit.run()
    assert torch.isfinite(network.weight).all()
    with pytest.raises(TraceError, match="at least one"):
        Fit(network, lambda batch: next(losses), [])


def test_malformed_texts():
    model = make_model(TOKENIZER, context=8)
    with pytest.raises(TraceError, match="context of 8"):
        fit_language_model(model, TOKENIZER, ["3 + 4 = 7 " * 3])
    with pytest.raises(TraceError, match="share a token"):
        fit_language_model(model, TOKENIZER, [Passage(prompt="answer 1", text="2")])


def test_transformers_is_an_extra(monkeypatch):
    original = builtins.__import__

    def missing(name, *rest):
        if name == "transformers":
            raise ModuleNotFoundError("No module named 'transformers'", name="transformers")
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MissingExtraError, match=r"grm-robotics\[text\]"):
        import_transformers()
