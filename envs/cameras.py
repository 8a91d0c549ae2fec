"""Multi-view offscreen rendering for any gymnasium MuJoCo environment, at MuJoCo's own speed.

The cost of software rendering is not the pixels but four flags and multisampling: shadows, reflections, skybox, haze.
`fast` turns them off, which is 20 to 30 times faster. What is left is the number of triangles, so `fast` also merges
mesh vertices closer than a centimetre, which small pictures cannot show; `faithful` keeps everything.
"""

import atexit
import os
import weakref
from collections.abc import Callable, Sequence
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

_MESH_CELL = 0.01
"""Metres; at 128 x 128 pixels a pixel of Meta-World's cameras is about 1.5 cm."""

_open: "weakref.WeakSet[Cameras]" = weakref.WeakSet()


def _close_all() -> None:
    """Free what is still open before MuJoCo terminates the display, which otherwise ends in a traceback at exit."""
    for cameras in list(_open):
        cameras.close()


_FACES = ("mesh_face", "mesh_facenormal", "mesh_facetexcoord", "mesh_facenum")
"""What of a model's meshes the GL context copies when it is made, and `_merge_vertices` changes for that moment."""


def _merge_vertices(model: mujoco.MjModel, cell: float) -> None:
    """Move every vertex to the first one in its grid cell and drop the triangles that vanish or coincide.

    A cell is `cell` metres wide, and no more than a twentieth of its mesh: a small thing keeps its shape.
    Vertex clustering: Rossignac & Borrel 1993, "Multi-resolution 3D approximations for rendering complex scenes".
    """
    for mesh in range(model.nmesh):
        vertices = model.mesh_vert[model.mesh_vertadr[mesh] :][: model.mesh_vertnum[mesh]]
        start, count = model.mesh_faceadr[mesh], model.mesh_facenum[mesh]
        width = min(cell, float(np.ptp(vertices, axis=0).max()) / 20)
        cells = np.round(vertices / width).astype(np.int64)
        _, first, inverse = np.unique(cells, axis=0, return_index=True, return_inverse=True)
        faces = first[inverse.ravel()][model.mesh_face[start : start + count]]
        corners = np.sort(faces, axis=1)
        whole = np.flatnonzero((corners[:, 0] < corners[:, 1]) & (corners[:, 1] < corners[:, 2]))
        kept = whole[np.sort(np.unique(corners[whole], axis=0, return_index=True)[1])]
        if len(kept) < 4:
            continue  # smaller than a cell: it would be gone
        model.mesh_face[start : start + len(kept)] = faces[kept]
        for name in ("mesh_facenormal", "mesh_facetexcoord"):
            array = getattr(model, name)
            array[start : start + len(kept)] = array[start : start + count][kept]
        model.mesh_facenum[mesh] = len(kept)


class Cameras:
    """Several named cameras of one MuJoCo simulation, each instance with a renderer and GL context of its own.

    Args:
        env: a gymnasium environment whose `unwrapped` has `model` and `data` (any `MujocoEnv`).
        views: camera names of the model, at least one.
        height, width: image size in pixels.
        quality: `fast` (no shadows, reflections, skybox, haze, multisampling; coarser meshes) or `faithful`.

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
        self.decorate: Callable[[mujoco.MjvScene], None] | None = None
        """Called with the scene before each picture: may add geoms that only the cameras see."""
        self._env = inner
        buffer = model.vis.global_
        before = model.vis.quality.offsamples, buffer.offwidth, buffer.offheight
        # Read once, when the context is made: so they can be ours for a moment, whatever the model's file says.
        buffer.offwidth, buffer.offheight = max(width, buffer.offwidth), max(height, buffer.offheight)
        faces = {name: getattr(model, name).copy() for name in _FACES} if quality == "fast" else {}
        if quality == "fast":
            model.vis.quality.offsamples = 0
            _merge_vertices(model, _MESH_CELL)
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
            for name, array in faces.items():
                getattr(model, name)[:] = array
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
            if self.decorate is not None:
                self.decorate(self._renderer.scene)
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
