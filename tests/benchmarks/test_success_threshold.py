import pytest

from benchmarks.success_threshold import Watch, best, outcomes


def test_what_counts_as_seen_and_as_false():
    watches = [
        Watch("head", "a", [0.1, 0.9, 0.9, 0.9], 1),  # seen
        Watch("head", "a", [0.9, 0.9, 0.1, 0.1], 3),  # false: it was not done yet
        Watch("head", "a", [0.9, 0.1, None, 0.9], 0),  # never twice in a row
        Watch("head", "b", [0.9, 0.9, 0.9], None),  # false: it never was
    ]
    assert outcomes(watches, 0.5, 2) == {("head", "a"): (1 / 3, 1 / 3), ("head", "b"): (1.0, 0.0)}
    assert outcomes(watches, 0.95, 2) == {("head", "a"): (0.0, 0.0), ("head", "b"): (0.0, 0.0)}


def test_the_rule_sees_most_of_those_that_are_hardly_ever_wrong():
    right = [Watch("head", "a", [0.1] * 5 + [0.93] * 8, 5)] * 9
    assert best([*right, Watch("head", "a", [0.1] * 13, None)]) == (0.9, 1)
    assert best([*right, Watch("head", "a", [0.92, 0.92, 0.1], None)]) == (0.9, 3), "two in a row are not enough then"
    assert best([Watch("head", "a", [0.99] * 9, None)]) is None


@pytest.mark.parametrize("threshold", [0.5, 0.9])
def test_an_episode_that_never_succeeds_has_nothing_to_see(threshold):
    assert outcomes([Watch("head", "a", [0.0], None)], threshold, 1) == {("head", "a"): (0.0, 0.0)}
