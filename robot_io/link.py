"""Messages between the process that drives a robot and the one that learns, on one machine or over a network alike.

Both ends prove that they know the token (the standard library's mutual challenge, HMAC-SHA256). A message is one
safetensors blob: named arrays, and JSON for the rest; nothing is ever unpickled. What is sent is not encrypted: over a
network that others share, forward the port through SSH.

Nobody waits for the other end: each link has a thread that writes from a bounded queue and one that reads. What does
not fit is refused, and the sender knows; a peer that is silent too long is taken for gone.
"""

import contextlib
import json
import logging
import queue
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener, answer_challenge, deliver_challenge
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from grm.errors import TraceError

_log = logging.getLogger(__name__)

CAPACITY = 4000
"""Messages that wait to be written or to be read: three minutes at 20 Hz."""
SILENCE_S = 5.0
"""After which a peer is gone; it says something every second."""
_BEAT_S = 1.0
_RETRY_S = 0.3
_MAX_BYTES = 256 * 2**20
_JSON = "json"

Address = tuple[str, int]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Message:
    """What one end told the other."""

    kind: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    """JSON."""
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    received: float = field(default_factory=time.monotonic)
    """When it was made here, or came here: seconds on this machine's monotonic clock."""

    def encode(self) -> bytes:
        """As bytes. Raises `ValueError` for a number that JSON has not: what is unknown is None."""
        text = json.dumps({"kind": self.kind, **self.fields}, allow_nan=False).encode()
        arrays = {f"array.{name}": np.ascontiguousarray(array) for name, array in self.arrays.items()}
        return save({_JSON: np.frombuffer(text, np.uint8), **arrays})

    @classmethod
    def decode(cls, data: bytes) -> "Message":
        """From bytes. Raises `TraceError` for what is no message."""
        try:
            found = load(data)
            fields = json.loads(found.pop(_JSON).tobytes())
            kind = str(fields.pop("kind"))
        except (SafetensorError, KeyError, ValueError, AttributeError) as error:
            raise TraceError(
                f"{len(data)} bytes are no message ({type(error).__name__}: {error}); expected what this version of "
                f"the session sends: run the same version on both machines"
            ) from error
        return cls(kind=kind, fields=fields, arrays={k.removeprefix("array."): v for k, v in found.items()})


class Link:
    """One connection; the threads end with it.

    Args:
        connection: authenticated already.
        silence_s: seconds after which a silent peer is gone; None for never, on a pipe, which tells.
    """

    def __init__(self, connection: Connection, *, silence_s: float | None = SILENCE_S) -> None:
        self._connection = connection
        self._socket = socket.socket(fileno=connection.fileno())  # of the same descriptor, for its options
        _set_options(self._socket, silence_s)
        self._out: queue.Queue[Message | Callable[[], Message]] = queue.Queue(CAPACITY)
        self._in: queue.Queue[Message] = queue.Queue(CAPACITY)
        self._ended: str | None = None
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=run, name=f"link {run.__name__}", daemon=True) for run in (self._write, self._read)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def ended(self) -> str | None:
        """Why nothing more comes, or None while the peer is there."""
        return self._ended

    def send(self, message: Message | Callable[[], Message], *, wait_s: float = 0.0) -> bool:
        """Put a message, or what will make it in the link's own thread, in line; False if it does not fit."""
        if self._ended is not None:
            return False
        try:
            self._out.put(message, block=wait_s > 0, timeout=wait_s or None)
        except queue.Full:
            return False
        return True

    def receive(self, wait_s: float = 0.0) -> Message | None:
        """The next message, or None if there is none within the time given."""
        try:
            return self._in.get(block=wait_s > 0, timeout=wait_s or None)
        except queue.Empty:
            return None

    def flush(self, within_s: float = 2.0) -> None:
        """Wait until what is in line was written."""
        end = time.monotonic() + within_s
        while self._ended is None and self._out.unfinished_tasks and time.monotonic() < end:
            time.sleep(0.005)

    def close(self, reason: str = "it was closed") -> None:
        """From any thread, any number of times."""
        with self._lock:
            if self._ended is not None:
                return
            self._ended = reason
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes whoever reads or writes

    def _write(self) -> None:
        try:
            while self._ended is None:
                try:
                    item = self._out.get(timeout=_BEAT_S)
                except queue.Empty:
                    self._connection.send_bytes(b"")
                    continue
                self._connection.send_bytes((item if isinstance(item, Message) else item()).encode())
                self._out.task_done()
        except OSError as error:
            self.close(f"writing failed ({type(error).__name__})")
        finally:  # also where a message could not be made: better no link than one that says nothing
            self.close("its writer ended")

    def _read(self) -> None:
        try:
            while self._ended is None:
                data = self._connection.recv_bytes(_MAX_BYTES)
                if data:
                    self._in.put(Message.decode(data))
        except EOFError:
            self.close("the other end closed it")
        except (OSError, TraceError) as error:
            self.close(f"reading failed ({type(error).__name__}: {error})")
        finally:
            self._threads[0].join(timeout=2 * _BEAT_S)
            self._socket.detach()
            with contextlib.suppress(OSError):
                self._connection.close()


class Host:
    """Waits for the other end; the newest peer that knows the token counts, since it is the one that came back."""

    def __init__(self, address: Address, token: bytes) -> None:
        self._listener = Listener(address)
        self.address: Address = self._listener.address  # pyright: ignore[reportAttributeAccessIssue]
        self._token = token
        self._link: Link | None = None
        self._closing = False
        threading.Thread(target=self._accept, name="host", daemon=True).start()

    @property
    def link(self) -> Link | None:
        """To the newest peer, if it is still there."""
        link = self._link
        return link if link is not None and link.ended is None else None

    def close(self) -> None:
        """Wait for nobody any more."""
        self._closing = True
        self._listener.close()
        if self._link is not None:
            self._link.close()

    def _accept(self) -> None:
        while not self._closing:
            try:
                connection = self._listener.accept()
            except OSError:
                continue
            # Not here: somebody who connects and says nothing must not keep others waiting.
            threading.Thread(target=self._welcome, args=(connection,), name="welcome", daemon=True).start()

    def _welcome(self, connection: Connection) -> None:
        try:
            with _timed(connection):
                deliver_challenge(connection, self._token)
                answer_challenge(connection, self._token)
        except (AuthenticationError, OSError, EOFError, ValueError) as error:
            why = "it does not know the token" if isinstance(error, AuthenticationError) else "it broke off"
            _log.warning("a peer was turned away: %s (%s)", why, type(error).__name__)
            connection.close()
            return
        before, self._link = self._link, Link(connection)
        if before is not None:
            before.close("a newer peer came")


class Caller:
    """Keeps a link to a host, again and again; `link` is None while there is none."""

    def __init__(self, address: Address, token: bytes) -> None:
        self._address, self._token = address, token
        self._link: Link | None = None
        self._closing = threading.Event()
        self.refused: str | None = None
        """Why the host turned this end away, the last time it did."""
        threading.Thread(target=self._call, name="caller", daemon=True).start()

    @property
    def link(self) -> Link | None:
        """To the host, if it is there."""
        link = self._link
        return link if link is not None and link.ended is None else None

    def close(self) -> None:
        """Call no more."""
        self._closing.set()
        if self._link is not None:
            self._link.close()

    def _call(self) -> None:
        while not self._closing.wait(_RETRY_S):
            if self.link is not None:
                continue
            try:
                connection = Client(self._address)
            except OSError:
                continue
            try:
                with _timed(connection):
                    answer_challenge(connection, self._token)
                    deliver_challenge(connection, self._token)
            except AuthenticationError:
                self.refused = "the learner does not know this token; expected the same token file on both machines"
                connection.close()
            except (OSError, EOFError, ValueError):
                connection.close()
            else:
                self.refused = None
                self._link = Link(connection)


@contextlib.contextmanager
def _timed(connection: Connection):
    """While this lasts, a peer that says nothing is an OSError."""
    view = socket.socket(fileno=connection.fileno())
    try:
        _set_options(view, SILENCE_S)
        yield
    finally:
        view.detach()


def _set_options(view: socket.socket, silence_s: float | None) -> None:
    if view.family in (socket.AF_INET, socket.AF_INET6):
        # A message is written in two parts, the second of which would wait for the first one's acknowledgement.
        view.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    seconds = silence_s or 0.0  # 0 is for ever
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        view.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", int(seconds), int(seconds % 1 * 1e6)))
