"""Give an agent a denser reward that leaves the optimal policy what it was.

    python examples/shape_an_env.py

The potential here is written by hand: how close the agent is to the goal of gymnasium's FrozenLake. A model in its
place is `shaping.ModelPotential(model, task)`, around an environment whose observations hold images.
"""

import gymnasium as gym

from shaping import PotentialShaping, StatePotential

GAMMA = 0.98  # the learner's own discount: shaping must use the same
DOWN, RIGHT = 1, 2
PLANS = {"to the goal": [DOWN, DOWN, RIGHT, RIGHT, DOWN, RIGHT], "into a hole": [DOWN, RIGHT]}


def closeness(cell: int) -> float:
    """Potential in [0, 1] of a cell of the 4 x 4 lake: 1 at the goal in the last corner, 0 in the first."""
    row, column = divmod(cell, 4)
    return (row + column) / 6


def main() -> None:
    env = PotentialShaping(gym.make("FrozenLake-v1", is_slippery=False), StatePotential(closeness), gamma=GAMMA)
    for name, plan in PLANS.items():
        _, info = env.reset(seed=0)
        first, shaped, sparse = info["phi"], 0.0, 0.0
        print(f"{name}:")
        for t, action in enumerate(plan):
            cell, reward, terminated, truncated, info = env.step(action)
            print(f"  cell {cell:2}  task {info['task_reward']:.0f}  shaped {reward:+.3f}  phi {info['phi']:.2f}")
            shaped += GAMMA**t * float(reward)
            sparse += GAMMA**t * info["task_reward"]
            if terminated or truncated:
                break
        # What the proof promises: the same return, less a constant that no action changes.
        print(f"  return {sparse:.3f} sparse, {shaped:.3f} shaped, {sparse - first:.3f} by the proof")
    env.close()


if __name__ == "__main__":
    main()
