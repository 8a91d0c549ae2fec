import pytest

from grm.errors import OutputError
from robot_io.devices import robot_config, teleop_config


def test_words_are_lerobots_own():
    config = robot_config(["type=grm_sim", "task=drawer-open", "height=32", "views=[corner]", "id=one"])
    assert (config.type, config.task, config.height, config.views, config.id) == (
        "grm_sim", "drawer-open", 32, ["corner"], "one",
    )  # fmt: skip
    assert teleop_config(["type=grm_sim_expert", "robot_id=one"]).robot_id == "one"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "expected `type=… name=value …`"),
        (["task=drawer-open"], "expected `type=… name=value …`"),
        (["type=grm_sim", "drawer-open"], "expected `type=… name=value …`"),
        (["type=grm_sim", "colour=red"], "is not understood"),
        (["type=grm_sim", "height=tall"], "is not understood"),
    ],
)
def test_what_is_not_understood_is_one_error(words, said):
    with pytest.raises(OutputError, match=said):
        robot_config(words)


def test_lerobots_own_arms_are_known():
    config = robot_config(["type=so101_follower", "port=/dev/ttyACM0", "id=mine"])
    assert (config.type, config.port) == ("so101_follower", "/dev/ttyACM0")
    with pytest.raises(OutputError, match=r"LeRobot knows .*grm_sim.*so101_follower"):
        robot_config(["type=nonesuch"])
