"""The learner's end of a session in this process, told by hand what a robot's process would say."""

import json
import threading
import time
from multiprocessing import Pipe
from pathlib import Path

import numpy as np
import pytest

from grm.errors import CheckpointError
from robot_io.cameras import as_recorded
from robot_io.learner import Learning, checkpoints, read_state
from robot_io.link import Caller, Host, Link, Message
from robot_io.messages import VERSION, retold
from robot_io.replay import Attempt

from .toy import Brightness, Tally, shaped

TOKEN = b"0123456789abcdef"
HELLO = {"version": VERSION, "limits": "abc", "views": ["front"], "scalars": list("abcd"), "commanded": list("abcd")}


def attempt(number: int, steps: int = 6, *, purpose: str = "rollout", success: bool = True) -> Attempt:
    generator = np.random.default_rng(number)
    return Attempt(
        number=number,
        views={"front": generator.integers(0, 255, (steps + 1, 16, 16, 3), dtype=np.uint8)},
        state=generator.normal(size=(steps + 1, 4)).astype(np.float32),
        time=np.arange(steps + 1) / 20,
        actions=generator.uniform(-1, 1, (steps, 4)).astype(np.float32),
        rewards=np.eye(steps, dtype=np.float32)[-1] * success,
        interventions=np.zeros(steps, bool),
        terminated=success,
        success=success,
        purpose=purpose,
    )


class Peer:
    """The robot's end, and a learner that runs in a thread until the end of the test."""

    def __init__(self, folder: Path, **known) -> None:
        self.grm = folder.parent / "grm"
        self.grm.mkdir(exist_ok=True)
        for name in ("config.json", "model.safetensors"):
            (self.grm / name).write_bytes(b"{}")
        folder.mkdir(exist_ok=True)
        self.mind = Tally(self.grm)
        self._host = Host(("127.0.0.1", 0), TOKEN)
        self._ours, theirs = (Link(end, silence_s=None) for end in Pipe())
        self.learning = Learning(folder, self.mind, self._host, theirs, **known)
        self._thread = threading.Thread(target=self.learning.run)
        self._thread.start()
        self._caller = Caller(self._host.address, TOKEN)
        self.connect()

    def connect(self) -> None:
        end = time.monotonic() + 10
        while self._caller.link is None:
            assert time.monotonic() < end
            time.sleep(0.005)
        self.link = self._caller.link

    def say(self, kind: str, **fields) -> None:
        assert self.link.send(Message(kind=kind, fields=fields))

    def hear(self, kind: str, within_s: float = 20.0) -> Message:
        """The next of this kind; the others before it are passed over."""
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            message = self.link.receive(0.1)
            if message is not None and message.kind == kind:
                return message
        raise AssertionError(f"no {kind} came")

    def end(self) -> None:
        self._ours.send(Message(kind="end"))
        self._thread.join(20)
        assert not self._thread.is_alive()
        self._caller.close()
        self._host.close()
        self._ours.close()


@pytest.fixture
def peer(tmp_path):
    peer = Peer(tmp_path / "learner")
    yield peer
    peer.end()


def test_it_welcomes_with_what_it_knows_the_model_and_a_policy(peer):
    peer.say("hello", **HELLO, recorded=0)
    assert peer.hear("welcome").fields["learned"] == []
    assert set(peer.hear("model").arrays) == {"config.json", "model.safetensors"}
    assert peer.hear("policy").arrays["policy"].tobytes() == b"policy after 0"


def test_a_rollout_is_judged_frame_by_frame_learned_and_saved(peer, tmp_path):
    peer.say("hello", **HELLO, recorded=0)
    told = attempt(0)
    for message in retold(told):
        peer.link.send(message)
    judged = [peer.hear("judged").fields for _ in range(7)]
    assert [one["index"] for one in judged] == list(range(7))
    judgement = Brightness().judge(Tally.task, told.frames)
    expected = [None if np.isnan(phi) else pytest.approx(phi) for phi in judgement.potential]
    assert [one["potential"] for one in judged] == expected
    assert peer.hear("learned").fields["episode"] == 0
    assert peer.mind.seen["0"] == shaped(told, judgement)
    [newest] = checkpoints(tmp_path / "learner")
    assert read_state(newest, peer.grm)["learned"] == [0]
    assert peer.hear("policy").arrays["policy"].tobytes() == b"policy after 1"


def test_live_pictures_are_judged_as_the_recording_will_show_them(peer):
    peer.say("hello", **HELLO, recorded=0)
    told = attempt(0)
    shown = np.stack([as_recorded(picture) for picture in told.views["front"]])
    assert (shown != told.views["front"]).any()
    for message in retold(told):
        said = message if isinstance(message, Message) else message()
        peer.link.send(Message(kind=said.kind, fields={**said.fields, "recorded": False}, arrays=said.arrays))
    peer.hear("learned")
    object.__setattr__(told, "views", {"front": shown})
    assert peer.mind.seen["0"] == shaped(told, Brightness().judge(Tally.task, told.frames))


def test_evaluations_are_acknowledged_and_not_learned_from(peer):
    peer.say("hello", **HELLO, recorded=0)
    for message in retold(attempt(0, purpose="evaluation")):
        peer.link.send(message)
    peer.hear("learned")
    assert peer.mind.seen == {}


def test_a_rollout_with_a_gap_is_not_learned_from_until_it_is_told_again(peer):
    peer.say("hello", **HELLO, recorded=0)
    said = retold(attempt(0))
    for message in said[:3] + said[4:]:
        peer.link.send(message)
    for message in retold(attempt(1)):
        peer.link.send(message)
    assert peer.hear("learned").fields["episode"] == 1
    assert set(peer.mind.seen) == {"1"}
    for message in said:
        peer.link.send(message)
    assert peer.hear("learned").fields["episode"] == 0


def test_what_is_told_twice_is_learned_once(peer):
    peer.say("hello", **HELLO, recorded=0)
    for _ in range(2):
        for message in retold(attempt(0)):
            peer.link.send(message)
        assert peer.hear("learned").fields["episode"] == 0
    assert peer.learning.learned == [0]


def test_what_is_not_kept_is_not_learned(peer):
    peer.say("hello", **HELLO, recorded=0)
    for message in retold(attempt(0))[:-1]:
        peer.link.send(message)
    peer.say("end", episode=0, ticks=6, success=False, terminated=False, kept=False)
    for message in retold(attempt(0, steps=3)):  # the next one takes its number
        peer.link.send(message)
    peer.hear("learned")
    assert len(peer.mind.seen["0"]) == 3


def test_who_was_cut_off_in_a_rollout_begins_it_again(peer):
    peer.say("hello", **HELLO, recorded=0)
    for message in retold(attempt(0))[:4]:
        peer.link.send(message)
    peer.hear("judged")
    peer.link.close()
    peer.connect()
    peer.say("hello", **HELLO, recorded=1)
    for message in retold(attempt(0)):
        peer.link.send(message)
    assert peer.hear("learned").fields["episode"] == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 99}, "speaks version 99"),
        ({"limits": "other"}, "the limits file has the fingerprint other"),
        ({"scalars": ["x.pos"]}, "the robot's state is x.pos and the demonstration's a, b, c, d; expected"),
        ({"recorded": 3}, "knows episode 4 and the robot's recording has 3 episodes"),
    ],
)
def test_who_does_not_belong_here_is_refused(tmp_path, change, said):
    peer = Peer(tmp_path / "learner", learned=[0, 4], limits="abc")
    peer.mind.scalars = tuple("abcd")
    peer.say("hello", **{**HELLO, "recorded": 5, **change})
    assert said in peer.hear("refused").fields["reason"]
    peer.end()


def test_a_checkpoint_of_another_grm_or_none_is_refused(tmp_path):
    peer = Peer(tmp_path / "learner")
    peer.learning.save()
    peer.learning.save()
    peer.end()
    [newest] = checkpoints(tmp_path / "learner")
    assert newest.name == "checkpoint-2"
    (peer.grm / "model.safetensors").write_bytes(b"other")
    with pytest.raises(CheckpointError, match="put it back, or choose another --out"):
        read_state(newest, peer.grm)
    (newest / "session.json").write_text(json.dumps({}))
    with pytest.raises(CheckpointError, match="is no checkpoint of a session"):
        read_state(newest, peer.grm)


def test_a_kill_while_saving_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    peer = Peer(tmp_path / "learner")
    peer.learning.save()

    def killed(folder: Path) -> None:
        folder.mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(peer.mind, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        peer.learning.save()
    assert [path.name for path in checkpoints(tmp_path / "learner")] == ["checkpoint-1"]
    monkeypatch.undo()
    peer.learning.save()
    assert [path.name for path in checkpoints(tmp_path / "learner")] == ["checkpoint-2"]
    peer.end()
