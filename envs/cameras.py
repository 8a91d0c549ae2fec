"""Multi-view offscreen rendering for any gymnasium MuJoCo environment, at MuJoCo's own speed.

The cost of software rendering is not the pixels but four flags and multisampling: shadows, reflections, skybox, haze.
`fast` turns them off, which is 20 to 30 times faster and leaves geometry as it was; `faithful` keeps them.
"""

import atexit
import os
import weakref
from collections.abc import Sequence
from typing import Any, Literal

import gymnasium as gym
import mujoco
import numpy as np
from jaxtyping import UInt8

from grm.errors import RendererError, TaskError

Quality = Literal["fast", "faithful"]
View = UInt8[np.ndarray, "h w 3"]

PIXELS = "pixels."
"""Prefix of the observation keys that hold images: `pixels.<view>`."""

_COSTLY_FLAGS = (
    mujoco.mjtRndFlag.mjRND_SHADOW,
    mujoco.mjtRndFlag.mjRND_REFLECTION,
    mujoco.mjtRndFlag.mjRND_SKYBOX,
    mujoco.mjtRndFlag.mjRND_HAZE,
)

_open: "weakref.WeakSet[Cameras]" = weakref.WeakSet()


def _close_all() -> None:
    """Free what is still open before MuJoCo terminates the display, which otherwise ends in a traceback at exit."""
    for cameras in list(_open):
        cameras.close()


class Cameras:
    """Several named cameras of one MuJoCo simulation, each instance with a renderer and GL context of its own.

    Args:
        env: a gymnasium environment whose `unwrapped` has `model` and `data` (any `MujocoEnv`).
        views: camera names of the model, at least one.
        height, width: image size in pixels.
        quality: `fast` (no shadows, reflections, skybox, haze, multisampling) or `faithful`.

    Raises:
        TaskError: an unknown camera, or an environment that is not a MuJoCo one.
        RendererError: this machine cannot render offscreen.
    """

    def __init__(
        self, env: gym.Env, views: Sequence[str], *, height: int = 64, width: int = 64, quality: Quality = "fast"
    ) -> None:
        inner: Any = env.unwrapped
        if not (hasattr(inner, "model") and hasattr(inner, "data")):
            raise TaskError(
                f"environment {type(inner).__name__} has no MuJoCo `model` and `data`; expected a gymnasium MujocoEnv"
            )
        model = inner.model
        names = [model.camera(i).name for i in range(model.ncam)]
        unknown = [view for view in views if view not in names]
        if unknown or not views or len(set(views)) != len(views):
            found = f"unknown camera {unknown[0]!r}" if unknown else f"views {list(views)}"
            raise TaskError(
                f"{found}; expected at least one, each once, of {', '.join(names) or '(the model has none)'}"
            )
        self.views = tuple(views)
        self._env = inner
        buffer = model.vis.global_
        before = model.vis.quality.offsamples, buffer.offwidth, buffer.offheight
        # Read once, when the context is made: so they can be ours for a moment, whatever the model's file says.
        buffer.offwidth, buffer.offheight = max(width, buffer.offwidth), max(height, buffer.offheight)
        if quality == "fast":
            model.vis.quality.offsamples = 0
        try:
            self._renderer: mujoco.Renderer | None = mujoco.Renderer(model, height, width)
        except (AttributeError, RuntimeError, ImportError, mujoco.FatalError) as error:
            # The platforms' own errors range from a failed assertion in PyOpenGL to a missing attribute on None.
            raise RendererError(
                f"offscreen rendering failed with MUJOCO_GL={os.environ.get('MUJOCO_GL', '(unset)')}: {error}; "
                f"expected a working GL: `apt-get install libegl1 libgl1` on Debian or Ubuntu, and MUJOCO_GL=egl set "
                f"before mujoco is imported (`import envs` does); see `grm doctor`"
            ) from error
        finally:
            model.vis.quality.offsamples, buffer.offwidth, buffer.offheight = before
        if not _open:
            atexit.register(
                _close_all
            )  # only now: exit handlers run last in, first out, and MuJoCo has just added its own
        _open.add(self)
        if quality == "fast":
            for flag in _COSTLY_FLAGS:
                self._renderer.scene.flags[flag] = 0

    def render(self) -> dict[str, View]:
        """What every camera sees now: one (height, width, 3) uint8 array by view, each the caller's own."""
        if self._renderer is None:
            raise RendererError("these cameras are closed; make new ones to render again")
        images = {}
        for view in self.views:
            self._renderer.update_scene(self._env.data, camera=view)
            images[view] = self._renderer.render().copy()
        return images

    def close(self) -> None:
        """Free the GL context; closing twice is harmless."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


class MultiViewObservation(gym.ObservationWrapper):
    """Gives any gymnasium MuJoCo environment the observation dict {`state`, `pixels.<view>`, …}.

    The keys are flat because Stable-Baselines3 has no nested dict spaces. Arguments as in `Cameras`.
    """

    def __init__(
        self, env: gym.Env, views: Sequence[str], *, height: int = 64, width: int = 64, quality: Quality = "fast"
    ) -> None:
        super().__init__(env)
        self.cameras = Cameras(env, views, height=height, width=width, quality=quality)
        image = gym.spaces.Box(0, 255, (height, width, 3), np.uint8)
        self.observation_space = gym.spaces.Dict(
            {"state": env.observation_space, **{PIXELS + view: image for view in views}}
        )

    def observation(self, observation: np.ndarray) -> dict[str, np.ndarray]:
        """Adds what every camera sees to the wrapped environment's observation."""
        return {"state": observation, **{PIXELS + view: image for view, image in self.cameras.render().items()}}

    def close(self) -> None:
        """Close the cameras, then the environment."""
        self.cameras.close()
        super().close()
