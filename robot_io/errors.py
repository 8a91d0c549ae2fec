"""What goes wrong around a robot. Each error says what was found, what was expected and what would work."""

from grm.errors import GrmError


class RobotError(GrmError, RuntimeError):
    """A robot, a camera or a teleoperator that cannot be reached, or does not do what it declares."""


class LimitError(RobotError, ValueError):
    """Limits that cannot be read, an action that cannot be sent, or a robot that stands beyond its limits."""


class StaleFrameError(RobotError):
    """A camera whose newest picture is too old to act on."""


class StoppedError(RobotError):
    """The robot was stopped: nothing is sent until a person arms it again."""
