"""The error tree. Each error says in one sentence what was found, what was expected and what would work.

Policy: every class derives from `GrmError` and from the standard exception it refines, so `except ValueError` keeps
working; messages are passed to the constructor whole, which keeps all of them picklable across worker processes.
A failure never becomes a number: what cannot be scored abstains or raises one of these.
"""


class GrmError(Exception):
    """Root of everything this project raises on purpose."""


class TraceError(GrmError, ValueError):
    """Malformed data: a frame, an action, an episode or a data set that is not what it claims to be."""


class TaskError(GrmError, ValueError):
    """An unknown task, camera or view; the message lists the names that exist."""


class AbstainedError(GrmError, RuntimeError):
    """A potential was asked for where the model abstained."""


class CheckpointError(GrmError, RuntimeError):
    """A checkpoint of another schema, with missing or surplus weights, or none at all."""


class DivergedError(GrmError, ArithmeticError):
    """Training left the finite numbers; what was saved before is still good."""


class OutputError(GrmError, OSError):
    """An output folder that exists already, is read-only or is full."""


class RendererError(GrmError, RuntimeError):
    """Headless rendering does not work on this machine; the message says what to install."""


class ShadowedPackageError(GrmError, ImportError):
    """A sibling package (`envs`, `policies`, …) resolves to a stranger of the same name."""


class MissingExtraError(GrmError, ImportError):
    """An optional dependency is missing; the message names the extra to install."""
