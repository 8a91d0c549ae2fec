"""The fixed-rate control loop: one robot, one way to choose actions, and any number of subscribers who only watch.

A subscriber that fails must not leave a robot half-way through a motion: it is logged once, marked dead and not called
again. Whatever else happens, the loop ends in a stop.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .errors import StoppedError
from .operator import Operator, Phase
from .robot import RobotEnv
from .rollout import Ending, Subscriber, Tick, Verdict

_log = logging.getLogger(__name__)


class Guarded:
    """Subscribers who cannot hurt the loop: the first exception of one is logged, and it is not called again."""

    def __init__(self, subscribers: Sequence[Subscriber]) -> None:
        self._alive = list(subscribers)
        self.dead: list[tuple[Subscriber, Exception]] = []
        """Who failed, and how."""

    def tell(self, event: str, *arguments: Any) -> None:
        """Call the method `event` of everybody alive."""
        for subscriber in list(self._alive):
            try:
                getattr(subscriber, event)(*arguments)
            except Exception as error:  # noqa: BLE001 (a subscriber's failure must not stop a robot half-way)
                _log.exception("%s failed and is not called again; the robot goes on", type(subscriber).__name__)
                self._alive.remove(subscriber)
                self.dead.append((subscriber, error))


class ControlLoop:
    """Episodes on a robot, at the rate of its environment.

    Args:
        env: armed before the first episode.
        act: the policy, from an observation to an action in [-1, 1]; called in the loop, so it must be quick.
        subscribers: see `Subscriber`; those that failed are in `subscribers.dead`.
        operator: a person, who may take over, judge, pause and stop; nobody by default.
    """

    def __init__(
        self,
        env: RobotEnv,
        act: Callable[[Mapping[str, np.ndarray]], np.ndarray],
        *,
        subscribers: Sequence[Subscriber] = (),
        operator: Operator | None = None,
    ) -> None:
        self.env, self.act = env, act
        self.subscribers = Guarded(subscribers)
        self.operator = operator or Operator()
        self._so_far = Ending(verdict=Verdict.GOING, ticks=0, interventions=0)

    def run(self, episodes: int, *, seed: int | None = None) -> list[Ending]:
        """Episodes until there are enough or the person ends it; the robot is stopped whatever happens.

        Raises what `RobotEnv` and `act` raise.
        """
        endings: list[Ending] = []
        try:
            for index in range(episodes):
                if self.operator.poll().ending or self.operator.state.phase is Phase.STOPPED:
                    break
                endings.append(self.episode(seed=None if seed is None else seed + index))
        finally:
            self.env.robot.stop("the control loop ended")
        return endings

    def episode(self, *, seed: int | None = None) -> Ending:
        """One episode; the robot is left resting, or stopped where it went wrong."""
        self.operator.wait()
        observation, info = self.env.reset(seed=seed)
        self.operator.begin()
        self.subscribers.tell("begin", observation, info)
        ending = self._so_far = Ending(verdict=Verdict.GOING, ticks=0, interventions=0, reason="it was interrupted")
        try:
            ending = self._drive(observation)
        except Exception as error:
            self.env.robot.stop(str(error))
            ending = replace(self._so_far, reason=f"{type(error).__name__}: {error}")
            raise
        finally:
            if self.env.robot.stopped is None:
                self.env.robot.rest()
            self.subscribers.tell("end", ending)
        return ending

    def _drive(self, observation: Mapping[str, np.ndarray]) -> Ending:
        state, index, interventions = self.operator.poll(), 0, 0
        while True:
            if state.phase is Phase.STOPPED:
                self.env.robot.stop("the operator stopped it")
                raise StoppedError("the operator stopped the robot; look at it, then arm it again")
            if state.phase is Phase.OVER:  # said while paused: no step was left to carry it
                return Ending(verdict=state.verdict, ticks=index, interventions=interventions)
            if state.phase is Phase.PAUSED:
                self.env.hold()
                state = self.operator.poll()
                continue
            by_hand = state.intervening and self.operator.teleoperator is not None
            action = self.env.encode(self.operator.action()) if by_hand else np.asarray(self.act(observation))
            following, reward, terminated, truncated, info = self.env.step(action)
            state = self.operator.poll()
            if state.phase is Phase.OVER:
                terminated = state.verdict in (Verdict.SUCCESS, Verdict.FAILURE)
                truncated, reward = not terminated, float(state.verdict is Verdict.SUCCESS)
                info |= {"verdict": state.verdict, "success": state.verdict is Verdict.SUCCESS}
            tick = Tick(
                index=index,
                observation=observation,
                action=action,
                next_observation=following,
                reward=reward,
                terminated=terminated,
                truncated=truncated,
                info=info,
                intervention=by_hand,
            )
            self.subscribers.tell("tick", tick)
            observation, index, interventions = following, index + 1, interventions + by_hand
            self._so_far = Ending(verdict=info["verdict"], ticks=index, interventions=interventions)
            if terminated or truncated:
                return self._so_far


def await_ready(operator: Operator, *, patience_s: float = 0.02) -> Callable[[int | None], None]:
    """A reset of the scene by a person: returns when they say that it is ready. Raises `StoppedError` if they stop.

    Keys other than that one are harmless meanwhile.
    """

    def reset(_seed: int | None) -> None:
        operator.wait()
        while (state := operator.poll()).phase is not Phase.RUNNING:
            if state.phase is Phase.STOPPED:
                raise StoppedError("the operator ended the session during a reset; arm the robot to begin again")
            time.sleep(patience_s)

    return reset
