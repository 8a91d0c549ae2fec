"""Tasks that know the truth: simulated tasks with cameras, scripted experts and true progress.

Importing this package registers `grm/MetaWorld-v0` with gymnasium and, on a headless Linux machine where nobody chose a
renderer, chooses EGL: MuJoCo reads that variable once, when it is imported, and would try a window system otherwise.
"""

import os
import sys

import gymnasium

if sys.platform.startswith("linux") and not os.environ.get("DISPLAY"):
    os.environ.setdefault("MUJOCO_GL", "egl")

gymnasium.register(id="grm/MetaWorld-v0", entry_point="envs.metaworld:MetaWorldEnv")
