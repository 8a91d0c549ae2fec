"""One drawn look of a scene: cameras, lights, colours, textures and things lying about, and never its physics.

Domain randomisation: Tobin et al. 2017, "Domain Randomization for Transferring Deep Neural Networks from Simulation to
the Real World". What the task is about keeps nearly its colour, because the instruction may name it; the room does not.
"""

import colorsys
from collections.abc import Mapping
from functools import partial

import mujoco
import numpy as np
from jaxtyping import Float

from grm.errors import TaskError

from .metaworld import MetaWorldEnv

_CHANGED = (
    *("cam_pos", "cam_quat", "cam_pos0", "cam_mat0", "cam_fovy"),
    *("light_pos", "light_dir", "light_diffuse", "light_ambient", "light_specular"),
    *("geom_rgba", "geom_matid", "site_rgba"),
)
"""Arrays of the model that only rendering reads, and that a look changes."""
_HEADLIGHT = ("ambient", "diffuse", "specular")

_ROOM = {"world": "floor", "tablelink": "table", "RetainingWall": "wall"}
"""Parts of Meta-World's room by the body they belong to."""
_ROBOT = ("base", "hand", "controller_box", "pedestal_feet", "torso", "pedestal", "head", "screen")
"""Bodies whose subtrees are the robot."""
_DEFAULT_RGBA = 0.5, 0.5, 0.5, 1.0
"""A geom of exactly this colour is drawn in its material's."""

_SHAPES = mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_SPHERE, mujoco.mjtGeom.mjGEOM_CYLINDER


class Appearance:
    """A look, put on an environment with `apply` and taken off exactly with `undo`.

    Both looks of an environment, with and without, have the same physics: no array that dynamics or the prover read is
    touched, and distractors exist in pictures only. It outlives resets, snapshots and restores:

        appearance = Appearance.draw(generator)
        appearance.apply(env)
        episode = record(env, "expert", seed=seed)
        appearance.undo(env)

    Args:
        seed: fixes the look, for a given model.
        strength: how far from the plain look, in [0, 1]; 0 is the plain one.

    Raises:
        TaskError: a strength out of range.
    """

    def __init__(self, seed: int, strength: float = 1.0) -> None:
        if not 0 <= strength <= 1:
            raise TaskError(f"appearance of strength {strength}; expected 0 (plain) to 1")
        self.seed, self.strength = seed, strength
        self._before: Mapping[str, np.ndarray] | None = None

    @classmethod
    def draw(cls, generator: np.random.Generator, strength: float = 1.0) -> "Appearance":
        """A random look."""
        return cls(int(generator.integers(2**31)), strength)

    def apply(self, env: MetaWorldEnv) -> None:
        """Put it on: what is rendered from now on looks so, until `undo`.

        Raises `TaskError` if the environment has no cameras or wears a look already, or this one is worn by another.
        """
        if env.cameras is None:
            raise TaskError(f"{env.task!r} was made without views; name some to change how they look")
        if env.cameras.decorate is not None:
            raise TaskError(f"{env.task!r} wears an appearance already; undo that one first")
        if self._before is not None:
            raise TaskError("this appearance is worn by another environment; draw one for each")
        model, generator = env.model, np.random.default_rng(self.seed)
        self._before = {name: getattr(model, name).copy() for name in _CHANGED} | {
            name: getattr(model.vis.headlight, name).copy() for name in _HEADLIGHT
        }
        # One stream each: what one part draws, which depends on the model, must not shift the others.
        cameras, lights, colours, things = generator.spawn(4)
        _move_cameras(model, self.strength, cameras)
        _relight(model, self.strength, lights)
        _recolour(model, self.strength, colours)
        env.cameras.decorate = partial(_add, _draw_distractors(self.strength, things))
        mujoco.mj_camlight(model, env.data)  # poses of cameras and lights, which the next picture would take from data

    def undo(self, env: MetaWorldEnv) -> None:
        """Take it off again; pictures are what they were, bit for bit. Raises `TaskError` if it was not applied."""
        if self._before is None or env.cameras is None:
            raise TaskError("this appearance is not applied; apply it first")
        for name, array in self._before.items():
            getattr(env.model.vis.headlight if name in _HEADLIGHT else env.model, name)[:] = array
        env.cameras.decorate = None
        self._before = None
        mujoco.mj_camlight(env.model, env.data)


def _move_cameras(model: mujoco.MjModel, strength: float, generator: np.random.Generator) -> None:
    """Within ±4 cm, ±4 degrees and ±10 % of field of view; a third of that for cameras on the robot."""
    for camera in range(model.ncam):
        scale = strength * (1.0 if model.cam_bodyid[camera] == 0 else 1 / 3)
        shift = scale * generator.uniform(-0.04, 0.04, 3)
        turn = scale * np.radians(generator.uniform(-4, 4, 3))
        model.cam_fovy[camera] *= 1 + scale * generator.uniform(-0.1, 0.1)
        model.cam_pos[camera] += shift
        model.cam_pos0[camera] += shift  # of a camera that tracks a body, only this and the next are looked at
        quaternion, matrix = np.empty(4), np.empty(9)
        mujoco.mju_euler2Quat(quaternion, turn, "xyz")
        mujoco.mju_quat2Mat(matrix, quaternion)
        if turn.any():
            mujoco.mju_mulQuat(model.cam_quat[camera], model.cam_quat[camera].copy(), quaternion)
            model.cam_mat0[camera] = (model.cam_mat0[camera].reshape(3, 3) @ matrix.reshape(3, 3)).ravel()


def _relight(model: mujoco.MjModel, strength: float, generator: np.random.Generator) -> None:
    """Lamps elsewhere, brighter, darker, off, and tinted; ambient light too."""
    for lamp in range(model.nlight):
        model.light_pos[lamp] += strength * generator.uniform(-0.5, 0.5, 3)
        direction = model.light_dir[lamp] + strength * generator.normal(0, 0.3, 3)
        if strength:
            model.light_dir[lamp] = direction / np.linalg.norm(direction)
        on = generator.random() >= 0.2 * strength
        brightness = on * (1 + strength * generator.uniform(-0.6, 0.8)) * _tint(strength, generator)
        for name in ("light_diffuse", "light_specular"):
            getattr(model, name)[lamp] *= brightness
        model.light_ambient[lamp] += strength * generator.uniform(0, 0.08)
    headlight = model.vis.headlight
    headlight.ambient[:] *= (1 + strength * generator.uniform(-0.4, 0.4)) * _tint(strength, generator)
    headlight.diffuse[:] *= (1 + strength * generator.uniform(-0.5, 0.5)) * _tint(strength, generator)
    headlight.specular[:] *= 1 + strength * generator.uniform(-0.8, 0.2)


def _tint(strength: float, generator: np.random.Generator) -> Float[np.ndarray, " 3"]:
    return 1 + strength * generator.uniform(-0.15, 0.15, 3)


def _recolour(model: mujoco.MjModel, strength: float, generator: np.random.Generator) -> None:
    """Room and robot: jitter, or now and then any colour and another texture. Task objects and goals: mild jitter."""
    textured = np.flatnonzero((model.mat_texid >= 0).any(1))
    skins: dict[str, int] = {}
    for part in ("floor", "table", "wall"):
        swapped, choice = generator.random() < 0.4 * strength, int(generator.integers(len(textured) + 1))
        if swapped:
            skins[part] = int(textured[choice]) if choice < len(textured) else -1
    colours: dict[tuple, np.ndarray] = {}
    for geom in range(model.ngeom):
        material, rgba = int(model.geom_matid[geom]), model.geom_rgba[geom].copy()
        if material >= 0 and tuple(rgba) == _DEFAULT_RGBA:
            rgba = model.mat_rgba[material].copy()
        part = _part(model, geom)
        key = part, material, *rgba.tolist()  # what was of one colour stays of one colour
        if key not in colours:
            mild = part == "task"
            fresh = not mild and generator.random() < 0.35 * strength
            colour = generator.uniform(0.1, 1.0, 3) if fresh else _jitter(rgba[:3], strength, mild, generator)
            colours[key] = np.append(colour, rgba[3])
        model.geom_rgba[geom] = colours[key]
        model.geom_matid[geom] = skins.get(part, material)
    for site in range(model.nsite):
        model.site_rgba[site, :3] = _jitter(model.site_rgba[site, :3], strength, True, generator)


def _part(model: mujoco.MjModel, geom: int) -> str:
    """Which of floor, table, wall, robot and task a geom belongs to."""
    body = int(model.geom_bodyid[geom])
    own = model.body(body).name
    if own in _ROOM:
        return _ROOM[own]
    while body:
        if model.body(body).name in _ROBOT:
            return "robot"
        body = int(model.body_parentid[body])
    return "task"


def _jitter(
    rgb: Float[np.ndarray, " 3"], strength: float, mild: bool, generator: np.random.Generator
) -> Float[np.ndarray, " 3"]:
    """Hue within ±4 % of the circle and brightness within ±15 % if mild; any gain of a channel within ±40 % if not."""
    if not mild:
        return np.clip(rgb * (1 + strength * generator.uniform(-0.4, 0.4, 3)), 0, 1)
    turn, gain = strength * generator.uniform(-0.04, 0.04), 1 + strength * generator.uniform(-0.15, 0.15)
    if not strength:
        return rgb
    hue, saturation, value = colorsys.rgb_to_hsv(*rgb.tolist())
    return np.array(colorsys.hsv_to_rgb((hue + turn) % 1, saturation, min(1, value * gain)))


_Thing = tuple[mujoco.mjtGeom, np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Shape, size, position, orientation matrix (9,), rgba."""


def _draw_distractors(strength: float, generator: np.random.Generator) -> list[_Thing]:
    """Up to four small things on the outer parts of the table, where tasks put nothing and the hand seldom goes."""
    things = []
    for _ in range(int(generator.integers(5) * strength + 0.5)):
        shape = _SHAPES[generator.integers(len(_SHAPES))]
        size = generator.uniform(0.015, 0.045, 3)
        if shape == mujoco.mjtGeom.mjGEOM_CYLINDER:
            size = np.array([size[0], size[1], 0.0])
        height = {mujoco.mjtGeom.mjGEOM_SPHERE: 0, mujoco.mjtGeom.mjGEOM_CYLINDER: 1}.get(shape, 2)
        if generator.random() < 0.6:
            x, y = generator.choice([-1, 1]) * generator.uniform(0.38, 0.6), generator.uniform(0.3, 0.92)
        else:
            x, y = generator.uniform(-0.6, 0.6), generator.uniform(0.26, 0.33)
        angle = generator.uniform(0, np.pi)
        c, s = np.cos(angle), np.sin(angle)
        rgba = np.append(generator.uniform(0, 1, 3), 1).astype(np.float32)
        things.append((shape, size, np.array([x, y, size[height]]), np.array([c, -s, 0, s, c, 0, 0, 0, 1.0]), rgba))
    return things


def _add(things: list[_Thing], scene: mujoco.MjvScene) -> None:
    for thing in things[: scene.maxgeom - scene.ngeom]:
        mujoco.mjv_initGeom(scene.geoms[scene.ngeom], *thing)
        scene.ngeom += 1
