import dataclasses

import pytest

from grm.errors import TaskError
from policies.arms import ABLATIONS, ARMS, CLASSIFIER, CLONED, DENSE, FEATURES, GRM_ONLY, GRM_SHAPED, SPARSE, arm_named


def test_names_are_unique_and_found():
    assert len({arm.name for arm in ARMS}) == len(ARMS)
    assert all(arm_named(arm.name) is arm for arm in ARMS)
    with pytest.raises(TaskError, match="unknown arm 'spares'; expected one of cloned, sparse"):
        arm_named("spares")


def test_every_arm_is_another_experiment():
    essence = {dataclasses.replace(arm, name="", about="") for arm in ARMS}
    assert len(essence) == len(ARMS)


@pytest.mark.parametrize(
    ("arm", "judged", "grm"),
    [
        (CLONED, False, None),
        (SPARSE, False, None),
        (DENSE, False, None),
        (GRM_SHAPED, True, "grm"),
        (GRM_ONLY, True, "grm"),
        (arm_named("grm_only_replays"), True, "grm-replays5"),
        (arm_named("grm_only_asked"), True, "grm-after40-replays5"),
        (CLASSIFIER, True, None),
        (FEATURES[0], True, "grm"),
        (arm_named("grm_zero_shot"), True, None),
        (arm_named("grm_single_view"), True, "grm-corner"),
    ],
)
def test_who_needs_pictures_and_which_network(arm, judged, grm):
    assert (arm.judged, arm.grm) == (judged, grm)


def test_ablations_differ_from_the_grm_arm_in_one_thing():
    for arm in ABLATIONS:
        fields = (
            "learns",
            "gold",
            "potential",
            "combination",
            "use",
            "adapted",
            "perspective",
            "inputs",
            "views",
        )
        assert sum(getattr(arm, name) != getattr(GRM_SHAPED, name) for name in fields) == 1, arm.name
