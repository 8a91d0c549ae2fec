import inspect
import pickle

import pytest

from grm import errors

CLASSES = [error for _, error in inspect.getmembers(errors, inspect.isclass)]


@pytest.mark.parametrize("error", CLASSES)
def test_one_root_and_picklable_across_processes(error):
    assert issubclass(error, errors.GrmError)
    sent = error("found 3 views; expected at least one named 'front'")
    received = pickle.loads(pickle.dumps(sent))
    assert type(received) is error
    assert str(received) == str(sent) == "found 3 views; expected at least one named 'front'"


@pytest.mark.parametrize(
    ("error", "standard"),
    [
        (errors.TraceError, ValueError),
        (errors.TaskError, ValueError),
        (errors.AbstainedError, RuntimeError),
        (errors.CheckpointError, RuntimeError),
        (errors.OutputError, OSError),
        (errors.RendererError, RuntimeError),
        (errors.ShadowedPackageError, ImportError),
        (errors.MissingExtraError, ImportError),
    ],
)
def test_standard_handlers_keep_working(error, standard):
    with pytest.raises(standard):
        raise error("found, expected, would work")


def test_every_error_refines_a_standard_one():
    refined = [e for e in CLASSES if e is not errors.GrmError]
    assert len(refined) >= 8
    for error in refined:
        assert any(base.__module__ == "builtins" and base is not Exception for base in error.__bases__), error
