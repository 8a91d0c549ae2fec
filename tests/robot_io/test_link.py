import socket
import threading
import time
from multiprocessing import Pipe

import numpy as np
import pytest

from grm.errors import TraceError
from robot_io import link as link_module
from robot_io.link import Caller, Host, Link, Message

TOKEN = b"0123456789abcdef"
HERE = ("127.0.0.1", 0)


def until(what, within_s: float = 10.0) -> None:
    end = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


@pytest.fixture
def host():
    host = Host(HERE, TOKEN)
    yield host
    host.close()


@pytest.fixture
def caller(host):
    caller = Caller(host.address, TOKEN)
    until(lambda: host.link is not None and caller.link is not None)
    yield caller
    caller.close()


def test_a_message_comes_back_as_it_was():
    message = Message(
        kind="tick",
        fields={"episode": 3, "reward": 0.5, "nothing": None},
        arrays={"state": np.arange(3, dtype=np.float32), "png": np.zeros(0, np.uint8)},
    )
    back = Message.decode(message.encode())
    assert (back.kind, dict(back.fields)) == (message.kind, dict(message.fields))
    assert back.arrays.keys() == message.arrays.keys()
    for name, array in message.arrays.items():
        np.testing.assert_array_equal(back.arrays[name], array)
        assert back.arrays[name].dtype == array.dtype


@pytest.mark.parametrize("data", [b"nonsense", b"\x80\x04\x95pickle", Message(kind="x").encode()[:-3]])
def test_what_is_no_message_is_refused(data):
    with pytest.raises(TraceError, match="are no message"):
        Message.decode(data)


def test_a_number_that_is_none_is_not_sent():
    with pytest.raises(ValueError, match="JSON"):
        Message(kind="x", fields={"phi": float("nan")}).encode()


def test_both_ends_are_heard(host, caller):
    assert caller.link.send(Message(kind="one", fields={"n": 1}))
    assert caller.link.send(lambda: Message(kind="two"))
    said = [host.link.receive(5.0) for _ in range(2)]
    assert [message.kind for message in said] == ["one", "two"]
    host.link.send(Message(kind="three"))
    assert caller.link.receive(5.0).kind == "three"


def test_who_does_not_know_the_token_is_turned_away(host):
    stranger = Caller(host.address, b"another token, as long")
    until(lambda: stranger.refused is not None)
    assert "same token file" in stranger.refused
    assert stranger.link is None
    assert host.link is None
    stranger.close()


def test_who_connects_and_says_nothing_keeps_nobody_waiting(host):
    with socket.create_connection(host.address):
        caller = Caller(host.address, TOKEN)
        until(lambda: host.link is not None)
        caller.close()


def test_who_was_cut_off_comes_back(host, caller):
    first = host.link
    first.close()
    until(lambda: host.link is not None and host.link is not first)
    until(lambda: caller.link is not None)
    assert caller.link.send(Message(kind="again"))
    assert host.link.receive(5.0).kind == "again"


def test_a_silent_peer_is_taken_for_gone():
    ours, theirs = Pipe()
    link = Link(ours, silence_s=0.3)
    until(lambda: link.ended is not None, 5.0)
    assert "reading failed" in link.ended
    assert not link.send(Message(kind="x"))
    theirs.close()


def test_what_does_not_fit_is_refused_and_nobody_waits(host, caller):
    begun, gate = threading.Event(), threading.Event()

    def slow() -> Message:
        begun.set()
        gate.wait(60.0)
        return Message(kind="slow")

    link = caller.link
    assert link.send(slow)
    assert begun.wait(10.0)
    sent = [link.send(Message(kind="x")) for _ in range(link_module.CAPACITY + 10)]
    assert not gate.is_set(), "all that while the writer was busy"
    assert sent == [True] * link_module.CAPACITY + [False] * 10
    gate.set()
    assert host.link.receive(5.0).kind == "slow"
