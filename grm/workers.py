"""What every worker process of ours does first."""

import multiprocessing
import os
import threading


def end_with_the_parent() -> None:
    """Let this process end when the one that started it is gone, killed say: who starts again must be its only writer.

    For `multiprocessing`'s children only, as an `initializer` or a first call.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None, "called outside of a worker process"

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
