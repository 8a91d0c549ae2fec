"""Judge an episode: how far along is the task after each frame?

    python examples/judge_episode.py                # the packaged checkpoint
    python examples/judge_episode.py my/checkpoint  # a folder that `grm train` or `grm adapt` wrote

Your own frames go where the made-up ones are: a dict of (height, width, 3) uint8 RGB arrays by camera name.
"""

import argparse

import numpy as np

from grm import GRM, Frame, Task


def picture(column: int) -> np.ndarray:
    """A white square on grey, `column` pixels from the left: it stands for what a camera saw."""
    image = np.full((64, 64, 3), 40, np.uint8)
    image[28:36, column : column + 8] = 255
    return image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", default="", help="a folder; nothing for the packaged checkpoint")
    options = parser.parse_args()

    # Any number of named cameras; one that saw nothing at some moment is left out of that frame.
    frames = [
        Frame(views={"topview": picture(column), "corner": picture(column)}, time=t / 10)
        for t, column in enumerate(range(0, 57, 8))
    ]
    # The goal is a picture of it done, from another episode: never the end of the one being judged.
    goal = Frame(views={"topview": picture(56), "corner": picture(56)})
    task = Task(instruction="push the square to the right", goal=goal)

    model = GRM.from_pretrained(options.checkpoint)
    judgement = model.judge(task, frames)
    for t, frame in enumerate(frames):
        if not judgement.judged[t]:
            print(f"{frame.time:.1f} s  the model abstained")
            continue
        print(
            f"{frame.time:.1f} s  phi {judgement.potential[t]:.2f} ± {judgement.spread[t]:.2f}  "
            f"P(done) {judgement.success[t]:.2f}"
        )


if __name__ == "__main__":
    main()
