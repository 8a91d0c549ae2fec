"""Score a camera stream while it happens, and know how old each answer is.

    python examples/live_reward.py

The oracle stands in for a trained model (`GRM.from_pretrained()` is used the same way), a blank picture for a camera.
"""

import time

import numpy as np

from grm import AbstainedError, Frame, LiveReward, Task
from grm.models.oracle import Oracle, progress_by_time

RATE_HZ = 20.0
STEPS = 20


def main() -> None:
    # The truth, for this made-up second: nothing until 0.2 s, then steadily to done at 0.8 s.
    model = Oracle(progress_by_time([0.0, 0.2, 0.8], [0.0, 0.0, 1.0]), noise=0.02, seed=0)
    live = LiveReward(model, Task(instruction="close the drawer"), deadline_s=1 / RATE_HZ)

    began = time.monotonic()
    for step in range(STEPS):
        frame = Frame(views={"corner": np.zeros((64, 64, 3), np.uint8)}, time=step / RATE_HZ)
        now = live.feed(frame)
        late = "  late" if now.late else ""
        print(f"{now.time:.2f} s  phi {now.potential:.2f} ± {now.spread:.2f}  in {1000 * now.latency_s:.1f} ms{late}")
        time.sleep(max(0.0, began + (step + 1) / RATE_HZ - time.monotonic()))

    # Whoever acts on a potential says how old it may be; an old one is refused, not passed off as new.
    time.sleep(0.1)
    try:
        live.latest(max_age_s=0.1)
    except AbstainedError as error:
        print(f"refused: {error}")


if __name__ == "__main__":
    main()
