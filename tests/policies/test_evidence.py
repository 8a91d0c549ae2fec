"""Tests of `policies.evidence`."""

import numpy as np
import pytest

from policies.evidence import Evidence, Outcome


def ended(success: bool, claim: float | None, *, cloned: bool = False) -> Outcome:
    return Outcome(cloned, success, claim)


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ([], 1.0),
        ([ended(False, None)] * 25, 1.0),
        ([ended(True, 1.0)] * 25, 1.0),
        ([ended(False, 1.0)] * 4, 1 / 5),
        ([ended(False, 0.2)] * 25, 1 / 2),
        ([ended(True, 0.5), ended(False, 0.5)], 1.25 / 1.5),
        ([ended(False, 1.0)] * 4 + [ended(True, 1.0)] * 25, 1.0),
    ],
)
def test_trust_by_hand(outcomes, expected):
    assert Evidence(outcomes).trust == pytest.approx(expected)


def test_what_was_said_at_the_end_is_the_claim_whatever_was_said_before():
    evidence = Evidence()
    evidence.add(np.r_[np.ones(50), np.nan, 0.1, 0.2, 0.3, np.nan, 0.4, 0.5], cloned=False, success=False)
    evidence.add(np.full(3, np.nan), cloned=True, success=False)
    evidence.add(None, cloned=True, success=True)
    evidence.add(np.ones(3), cloned=True, success=True, helped=True)
    assert [outcome.claim for outcome in evidence.outcomes] == [pytest.approx(0.3), None, None, 1.0]
    assert evidence.success_rate == 1 / 25
    assert Evidence.from_lists(evidence.to_lists()) == evidence


def test_the_better_one_acts_and_without_evidence_mostly_the_learner():
    rng = np.random.default_rng(0)

    def share(outcomes: list[Outcome]) -> float:
        return float(np.mean([Evidence(outcomes).clone_acts(rng) for _ in range(2000)]))

    clone, actor = [[ended(success, None, cloned=cloned) for success in (True, False)] for cloned in (True, False)]
    assert share([]) < 0.25
    assert not Evidence().clone_is_better
    assert Evidence([clone[0]] * 15 + [actor[0]] * 14 + [actor[1]]).clone_is_better
    assert not Evidence([actor[0]] * 15 + [clone[0]] * 14 + [clone[1]]).clone_is_better
    assert share([clone[1]] * 5 + [actor[1]] * 5) < 0.25
    assert share([clone[0]] * 15 + [actor[1]] * 15) > 0.99
    assert share([actor[1]] * 15 + [clone[0]] * 15) == 0, "every other rollout at most"
    assert share([clone[1]] * 15 + [actor[0]] * 15) < 0.01
    helped = [Outcome(True, True, None, helped=True)] * 15
    assert share([actor[0]] * 15 + helped) < 0.05, "what a person did is no merit of the cloned policy"
    assert share([actor[0]] * 50 + [clone[0]] * 15 + [actor[1]] * 15) > 0.99, "what was longer ago does not count"
