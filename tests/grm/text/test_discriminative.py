import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

from envs.reasoning import Habits, Mistake, TwoSided, make_solutions
from grm.aggregate import last, product
from grm.data.stepwise import LabelledSolution
from grm.errors import AbstainedError, CheckpointError, TraceError
from grm.reward import Judge, ScoredJudgement, ScoreKind, Task, Thought
from grm.testing import check_judgement, check_process_reward
from grm.text.conventions import CONVENTIONS, MATH_SHEPHERD, QWEN, SKYWORK, TRL
from grm.text.discriminative import (
    DiscriminativeJudge,
    DisORM,
    fit_judge,
    judge_fit,
    labels_until_error,
    outcome_labels,
)
from grm.text.scoring import judge_all, score
from grm.text.tiny import FitSettings, Passage, fit_language_model, make_model, make_tokenizer

from .tiny_judges import QUESTION, STEPS, judge, language_model, tokenizer

TASK = Task(instruction=QUESTION)
THOUGHTS = [Thought(text=step) for step in STEPS]
every_convention = pytest.mark.parametrize("convention", CONVENTIONS.values(), ids=CONVENTIONS)


@every_convention
def test_laws(convention):
    check_process_reward(judge(convention), TASK, THOUGHTS)


@every_convention
def test_a_score_is_the_network_s_number_at_the_convention_s_place(convention):
    """Against one forward of transformers' own classes, read by hand."""
    model = judge(convention)
    asked = model.asker.ask(QUESTION, STEPS)
    with torch.no_grad():
        hidden = model.backbone(torch.tensor([asked.tokens])).last_hidden_state[0, asked.reads]
        if convention.reading == "tokens":
            ids = model.tokenizer.convert_tokens_to_ids(["-", "+"])
            expected = language_model(model.tokenizer).lm_head(hidden)[:, ids].softmax(-1)[:, 1]
        elif convention.reading == "scalar":
            expected = model.head(hidden)[:, 0].sigmoid()
        else:
            expected = model.head(hidden).softmax(-1)[:, 1]
    judgement = model.judge(TASK, THOUGHTS)
    assert isinstance(judgement, ScoredJudgement)
    assert judgement.kind is convention.kind
    np.testing.assert_allclose(judgement.score, expected, atol=1e-5)
    potential = np.cumprod(judgement.score) if convention.kind is ScoreKind.CORRECTNESS else judgement.score
    np.testing.assert_allclose(judgement.potential, potential)
    assert np.ptp(judgement.score) > 1e-3, "all steps alike: nothing was tested"
    assert (judgement.spread == 0).all()


@every_convention
def test_one_forward_per_solution(convention):
    model = judge(convention)
    forwards = []
    model.backbone.register_forward_hook(lambda *_: forwards.append(1))
    model.judge(TASK, THOUGHTS)
    assert len(forwards) == 1
    assert model.usage.calls == 1
    assert model.usage.prompt_tokens == len(model.asker.ask(QUESTION, STEPS).tokens)


@every_convention
def test_a_live_step_reads_its_own_tokens_only(convention):
    model = judge(convention)
    carry = model.start(TASK)
    for thought in THOUGHTS:
        [carry], _ = model.extend([carry], [[thought]])
    assert model.usage.prompt_tokens == len(model.asker.ask(QUESTION, STEPS).tokens), "as much as offline"
    assert model.usage.calls == len(STEPS)


def test_branches_leave_their_trunk_alone():
    model = judge(TRL)
    [trunk], _ = model.extend([model.start(TASK)], [THOUGHTS[:2]])
    before = copy.deepcopy(trunk)
    branches, judgements = model.extend(
        [trunk, trunk, model.start(TASK)], [THOUGHTS[2:4], [Thought(text="6")], THOUGHTS]
    )
    assert (trunk.steps, trunk.tokens, trunk.potential) == (before.steps, before.tokens, before.potential)
    assert len(trunk.memory) == 2
    for kept, expected in zip(trunk.memory, before.memory, strict=True):
        assert all(map(torch.equal, kept, expected))
    offline = model.judge(TASK, THOUGHTS)
    np.testing.assert_allclose(judgements[0].potential, offline.potential[2:4], atol=1e-5)
    other = model.judge(TASK, [*THOUGHTS[:2], Thought(text="6")])
    np.testing.assert_allclose(judgements[1].potential, other.potential[2:], atol=1e-5)
    _, [on] = model.extend([branches[0]], [THOUGHTS[4:]])
    np.testing.assert_allclose(on.potential, offline.potential[4:], atol=1e-5)


def mistral(**settings):
    """A judge whose attention has a window of its own."""
    made = tokenizer()
    torch.manual_seed(0)
    config = transformers.MistralConfig(
        vocab_size=len(made),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        **settings,
    )
    return DiscriminativeJudge.on_top_of(transformers.MistralForCausalLM(config).eval(), made, MATH_SHEPHERD)


def test_a_model_that_forgets_reads_again():
    model = mistral(sliding_window=8)
    check_process_reward(model, TASK, THOUGHTS)
    [carry], _ = model.extend([model.start(TASK)], [THOUGHTS])
    assert carry.memory == ()
    whole = mistral(sliding_window=None)
    check_process_reward(whole, TASK, THOUGHTS)
    [carry], _ = whole.extend([whole.start(TASK)], [THOUGHTS])
    assert carry.memory


def test_a_model_that_sees_the_future_is_refused():
    made = tokenizer()
    config = transformers.BertConfig(
        vocab_size=len(made), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )
    with pytest.raises(CheckpointError, match="sees later tokens"):
        DiscriminativeJudge(transformers.BertModel(config).eval(), torch.nn.Linear(32, 2), made, TRL)


@every_convention
def test_what_does_not_fit_is_dropped_whole_and_counted(convention):
    roomy = judge(convention)
    whole = roomy.judge(TASK, THOUGHTS)
    reads = roomy.asker.ask(QUESTION, STEPS).reads
    for fitting in (0, 1, 3):
        cramped = judge(convention, context=reads[fitting])  # the read of step `fitting` is the first that does not fit
        judgement = cramped.judge(TASK, THOUGHTS)
        check_judgement(judgement, len(STEPS))
        assert judgement.judged.tolist() == [i < fitting for i in range(len(STEPS))]
        np.testing.assert_allclose(judgement.score[:fitting], whole.score[:fitting], atol=1e-5)
        assert np.isnan(judgement.score[fitting:]).all()
        assert cramped.dropped == len(STEPS) - fitting
        assert score(cramped, [QUESTION], [[STEPS]])[0][0][fitting:] == [None] * (len(STEPS) - fitting)
        check_process_reward(cramped, TASK, THOUGHTS)
        with pytest.raises(AbstainedError):
            (last if convention.kind is ScoreKind.VALUE else product)(judgement)


def test_score_is_nested_lists_in_order():
    """However the batches fall."""
    model, small = judge(QWEN), judge(QWEN)
    small.batch_tokens = 1
    questions = [QUESTION, "mod 7 : 3", "mod 7"]
    outputs = [[STEPS, STEPS[:2]], [], ["3 + 4 = 0\n\n0 * 2 = 0\n", ["answer 6"], []]]
    scores = score(model, questions, outputs)
    assert [[len(steps) for steps in candidates] for candidates in scores] == [[5, 2], [], [2, 1, 0]]
    assert all(isinstance(s, float) for candidates in scores for steps in candidates for s in steps)
    for question, candidates, found in zip(questions, outputs, scores, strict=True):
        for candidate, steps in zip(candidates, found, strict=True):
            split = candidate.strip().split("\n\n") if isinstance(candidate, str) else candidate
            alone = model.judge(Task(instruction=question), [Thought(text=s) for s in split])
            np.testing.assert_allclose(steps, alone.score, atol=1e-5)
    flat = [s for c in score(small, questions, outputs) for steps in c for s in steps]
    np.testing.assert_allclose(flat, [s for c in scores for steps in c for s in steps], atol=1e-5)
    assert score(model, [], []) == []
    with pytest.raises(TraceError, match="expected one each"):
        score(model, ["a"], [])


def test_scores_of_exactly_zero_are_scores():
    """search-and-learn picks the scores that are not zero, and loses those that are."""
    model = judge(SKYWORK)
    with torch.no_grad():
        model.head.bias.fill_(-1e4)
    assert score(model, [QUESTION], [[STEPS]]) == [[[0.0] * len(STEPS)]]


@pytest.mark.parametrize("convention", [QWEN, SKYWORK, TRL], ids=lambda convention: convention.name)
def test_malformed_steps_come_from_the_convention(convention):
    with pytest.raises(TraceError, match="holds the tag"):
        judge(convention).judge(TASK, [Thought(text=f"3 {convention.tag} 4")])
    model = judge(convention)
    with pytest.raises(TraceError, match="empty"):
        model.extend([model.start(TASK)], [[Thought(text=" ")]])


@every_convention
def test_saved_and_loaded(convention, tmp_path):
    model = judge(convention, seed=5)
    model.save_pretrained(tmp_path)
    loaded = DiscriminativeJudge.from_pretrained(tmp_path)
    assert loaded.convention == convention
    np.testing.assert_allclose(loaded.judge(TASK, THOUGHTS).score, model.judge(TASK, THOUGHTS).score, atol=1e-6)
    (tmp_path / "head.safetensors").unlink()
    with pytest.raises(CheckpointError, match="lacks the head"):
        DiscriminativeJudge.from_pretrained(tmp_path)


def released(convention, folder):
    """A folder as the family publishes it: names of weights, classes and configuration."""
    model = judge(convention, seed=7)
    whole = language_model(model.tokenizer)
    if convention.reading == "tokens":
        whole.save_pretrained(folder)
    elif convention.name == "trl":
        classifier = transformers.LlamaForTokenClassification(transformers.LlamaConfig(**whole.config.to_dict()))
        classifier.model.load_state_dict(model.backbone.state_dict())
        classifier.score.load_state_dict(model.head.state_dict())
        classifier.save_pretrained(folder)
    else:  # classes of their own: backbone below `model.`, the head beside it
        whole.save_pretrained(folder)
        state = {f"model.{n}": t.contiguous() for n, t in model.backbone.state_dict().items()}
        state |= {f"{convention.weights}.{n}": t.contiguous() for n, t in model.head.state_dict().items()}
        assert ("score.2.weight" in state) == (convention is QWEN)
        assert ("v_head.summary.weight" in state) == (convention is SKYWORK)
        safetensors.torch.save_file(state, folder / "model.safetensors", {"format": "pt"})
        config = json.loads((folder / "config.json").read_text())
        config |= {"architectures": ["Qwen2ForProcessRewardModel"], "auto_map": {"AutoModel": "modeling_qwen2_rm.X"}}
        (folder / "config.json").write_text(json.dumps(config))
    model.tokenizer.save_pretrained(folder)
    return model


@every_convention
def test_released_layouts_load_by_the_name_of_their_convention(convention, tmp_path):
    model = released(convention, tmp_path)
    loaded = DiscriminativeJudge.from_pretrained(tmp_path, convention.name)
    np.testing.assert_allclose(loaded.judge(TASK, THOUGHTS).score, model.judge(TASK, THOUGHTS).score, atol=1e-6)
    with pytest.raises(CheckpointError, match="name a convention"):
        DiscriminativeJudge.from_pretrained(tmp_path)


def test_sharded_heads_are_found(tmp_path):
    model = released(QWEN, tmp_path)
    state = safetensors.torch.load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    shards = {"model-00001-of-00002.safetensors": {}, "model-00002-of-00002.safetensors": {}}
    for number, (name, tensor) in enumerate(state.items()):
        list(shards.values())[number % 2][name] = tensor
    for file, part in shards.items():
        safetensors.torch.save_file(part, tmp_path / file, {"format": "pt"})
    by_weight = {name: file for file, part in shards.items() for name in part}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": by_weight}))
    loaded = DiscriminativeJudge.from_pretrained(tmp_path, QWEN)
    np.testing.assert_allclose(loaded.judge(TASK, THOUGHTS).score, model.judge(TASK, THOUGHTS).score, atol=1e-6)


def test_a_bare_language_model_is_no_judge_of_classes(tmp_path):
    released(MATH_SHEPHERD, tmp_path)
    for convention in (QWEN, SKYWORK, TRL):
        with pytest.raises(CheckpointError, match="not a bare language model"):
            DiscriminativeJudge.from_pretrained(tmp_path, convention)
    with pytest.raises(CheckpointError, match="expected a folder"):
        DiscriminativeJudge.from_pretrained(tmp_path / "missing", TRL)


def test_weights_in_a_pickle_are_not_read(tmp_path):
    released(MATH_SHEPHERD, tmp_path)
    state = safetensors.torch.load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="with safetensors"):
        DiscriminativeJudge.from_pretrained(tmp_path, MATH_SHEPHERD)


# Training.


def test_masks_by_hand():
    assert labels_until_error((1.0, 0.5, 0.4, 1.0, 0.0)) == (1.0, 0.5, 0.4, None, None)
    assert labels_until_error((None, True, True)) == (None, True, True)
    assert outcome_labels(["a", "b"], right=True) == (None, 1.0)
    assert outcome_labels(["a"], right=False) == (0.0,)
    with pytest.raises(TraceError, match="at least one"):
        outcome_labels([], right=True)


@pytest.mark.parametrize("convention", [TRL, SKYWORK, MATH_SHEPHERD], ids=lambda convention: convention.name)
def test_the_loss_by_hand(convention):
    """Cross-entropy of soft labels, the mean over labelled steps; after an error only a value judge learns."""
    model = judge(convention)
    labels = (0.75, None, 0.25, 1.0, 0.0)
    example = LabelledSolution(prompt=QUESTION, steps=tuple(STEPS), labels=labels)
    fit = judge_fit(model, [example], FitSettings(steps=1, batch=1))
    scores = model.judge(TASK, THOUGHTS).score
    learned = (0, 2) if convention.kind is ScoreKind.CORRECTNESS else (0, 2, 3, 4)
    expected = -np.mean([labels[i] * math.log(scores[i]) + (1 - labels[i]) * math.log(1 - scores[i]) for i in learned])
    assert fit.run() == pytest.approx(expected, abs=1e-5)


def test_soft_labels_teach_soft_scores():
    """As integers they would teach 0; as bits, 1."""
    model = judge(TRL)
    example = LabelledSolution(prompt=QUESTION, steps=tuple(STEPS), labels=(0.75, 0.5, 0.9, 0.6, 0.3))
    fit_judge(model, [example], FitSettings(steps=80, batch=1, learning_rate=5e-3))
    np.testing.assert_allclose(model.judge(TASK, THOUGHTS).score, example.labels, atol=0.05)
    assert not model.network.training


def test_labels_beyond_the_context_are_left_out():
    cramped = judge(TRL, context=judge(TRL).asker.ask(QUESTION, STEPS).reads[2])
    steps = tuple(STEPS)
    fit = judge_fit(cramped, [LabelledSolution(prompt=QUESTION, steps=steps, labels=(1.0,) * 5)])
    assert [len(labels) for _, labels in fit.examples] == [2]
    with pytest.raises(TraceError, match="none of 1 examples"):
        judge_fit(cramped, [LabelledSolution(prompt=QUESTION, steps=steps, labels=(None,) * 4 + (1.0,))])


# Outcomes.


def as_judge(model: Judge[Thought]) -> Judge[Thought]:
    return model


def test_an_outcome_judge_says_one_number():
    network = judge(TRL)
    model = as_judge(DisORM(network))
    judgement = model.judge(TASK, THOUGHTS)
    check_judgement(judgement, len(STEPS))
    assert judgement.judged.tolist() == [False] * 4 + [True]
    assert judgement.last() == pytest.approx(network.judge(TASK, THOUGHTS).score[-1])
    assert last(judgement) == judgement.last()
    assert not hasattr(model, "extend"), "it must see the end"
    scores = score(DisORM(network), [QUESTION, "mod 7"], [[STEPS, STEPS[:1]], [[]]])
    assert scores[0][0] == [None] * 4 + [pytest.approx(judgement.last(), abs=1e-6)]
    assert scores[0][1] == pytest.approx(score(network, [QUESTION], [[STEPS[:1]]])[0][0], abs=1e-6)
    assert scores[1] == [[]]


def test_an_outcome_judge_abstains_on_what_it_cannot_read_to_the_end():
    cramped = judge(TRL, context=judge(TRL).asker.ask(QUESTION, STEPS).reads[3])
    assert not DisORM(cramped).judge(TASK, THOUGHTS).judged.any()
    assert score(DisORM(cramped), [QUESTION], [[STEPS]]) == [[[None] * len(STEPS)]]


# Learning.


def first_error_f1(model, solutions):
    """ProcessBench: harmonic mean of finding the first error where there is one and none where there is none."""
    judgements = judge_all(model, [(s.question, s.steps) for s in solutions])
    found = [int(np.argmax(j.score < 0.5)) if (j.score < 0.5).any() else -1 for j in judgements]
    hits = {
        erroneous: np.mean(
            [f == s.first_error for f, s in zip(found, solutions, strict=True) if (s.first_error >= 0) is erroneous]
        )
        for erroneous in (True, False)
    }
    return 2 * hits[True] * hits[False] / max(hits[True] + hits[False], 1e-9)


@pytest.mark.slow
def test_a_judge_learns_sooner_on_top_of_the_language():
    """Same labels, same 200 steps: F1 of .94 and .86 (two machines) on top of the language, .71 and .51 without."""
    world, slips, rng = TwoSided(3, claims=0.0), Habits(mistakes=(Mistake.SLIP,)), np.random.default_rng(0)
    right = make_solutions([world], rng, 3000, lengths=(4, 4), erroneous=0.0)
    labelled = make_solutions([world], rng, 3000, lengths=(4, 4), habits=slips)
    test = make_solutions([world], np.random.default_rng(1), 300, lengths=(4, 4), habits=slips)
    made = make_tokenizer([s.question + "\n" + "\n".join(s.steps) for s in right])
    language = make_model(made, context=96)
    passages = [Passage(prompt=s.question + "\n", text="\n".join(s.steps)) for s in right]
    fit_language_model(language, made, passages, FitSettings(steps=300, batch=32, learning_rate=3e-3))
    examples = [LabelledSolution(prompt=s.question, steps=s.steps, labels=s.local) for s in labelled]
    f1 = {}
    for name, model in {"pretrained": language, "random": make_model(made, context=96)}.items():
        on_top = DiscriminativeJudge.on_top_of(model, made, replace(TRL, opening="{bos}{question}\n"))
        judge_fit(on_top, examples, FitSettings(steps=500, batch=32, learning_rate=1e-3)).run(until=200)
        f1[name] = first_error_f1(on_top, test)
    assert f1["pretrained"] > 0.8, f1
    assert f1["random"] < f1["pretrained"] - 0.1, f1
