"""What this machine can and cannot do, found by trying, and what to do about it.

Every check returns findings and raises nothing: a doctor that falls ill is no help. The renderer is tried in another
process, because a wrong graphics driver ends the process that asks for it.
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path

from rich.table import Table
from rich.text import Text

from ._layout import check_layout
from .errors import ShadowedPackageError

DISTRIBUTIONS = ("numpy", "torch", "torchvision", "gymnasium", "mujoco", "metaworld", "lerobot", "stable-baselines3")
RENDER_TIMEOUT_S = 60.0
"""A first import on a cold disk takes tens of seconds; a hung driver takes forever."""
DISK_NEEDED_GB = 2.0
"""A pre-training run's episodes, checkpoints and pages together."""

# Source for another process: `mujoco` has its door in envs/, and the kernel must not import it.
RENDER_SOURCE = """
import json, time
import mujoco
model = mujoco.MjModel.from_xml_string(
    '<mujoco><worldbody><light pos="0 0 2"/><geom type="sphere" size="0.3" rgba="1 0 0 1"/></worldbody></mujoco>'
)
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 64, 64) as renderer:
    renderer.update_scene(data)
    brightest = int(renderer.render().max())
    began = time.perf_counter()
    renderer.render()
    seconds = time.perf_counter() - began
    try:
        from OpenGL import GL
        device = GL.glGetString(GL.GL_RENDERER).decode()
    except Exception:
        device = "unnamed device"
print(json.dumps({"brightest": brightest, "seconds": seconds, "device": device}))
"""


class Status(StrEnum):
    """How bad a finding is: `fail` stops a run, `warn` slows or limits it."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    name: str
    status: Status
    found: str
    """What was found, in a few words."""
    advice: str = ""
    """What to do about it; empty where nothing is to be done."""


def diagnose() -> list[Finding]:
    """Look at Python, packages, devices, processors, rendering, folders and disk. Takes some seconds; never raises."""
    return [
        _python(),
        _layout(),
        *_distributions(),
        _opencv(),
        *_torch(),
        _renderer(),
        _writable("current folder", Path.cwd()),
        _writable("temporary folder", Path(tempfile.gettempdir())),
        _disk(Path.cwd()),
    ]


def render(findings: list[Finding]) -> Table:
    """The findings as a table for a terminal, one row each, advice under what was found."""
    style = {Status.OK: ("✓", "green"), Status.WARN: ("!", "yellow"), Status.FAIL: ("✗", "bold red")}
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        mark, colour = style[finding.status]
        # `Text`, not markup: a path may hold square brackets.
        said = Text(finding.found)
        if finding.advice:
            said.append(f"\n→ {finding.advice}", style=colour)
        table.add_row(Text(mark, style=colour), Text(finding.name), said)
    return table


def _python() -> Finding:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if (3, 12) <= sys.version_info[:2] < (3, 14):
        return Finding(name="python", status=Status.OK, found=found)
    return Finding(
        name="python", status=Status.FAIL, found=found, advice="use Python 3.12 or 3.13: `uv sync --python 3.12`"
    )


def _layout() -> Finding:
    try:
        check_layout()
    except ShadowedPackageError as error:
        return Finding(
            name="packages",
            status=Status.FAIL,
            found=str(error),
            advice="`pip uninstall envs policies`, then `uv sync`",
        )
    return Finding(name="packages", status=Status.OK, found="envs, policies, shaping and robot_io are ours")


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _distributions() -> list[Finding]:
    found = {name: _version(name) for name in DISTRIBUTIONS}
    return [
        Finding(name=name, status=Status.OK, found=version)
        if version
        else Finding(name=name, status=Status.FAIL, found="not installed", advice="`uv sync` installs what is locked")
        for name, version in found.items()
    ]


def _opencv() -> Finding:
    headless, full = _version("opencv-python-headless"), _version("opencv-python")
    if headless and full:
        return Finding(
            name="opencv",
            status=Status.WARN,
            found=f"both opencv-python {full} and opencv-python-headless {headless}, which overwrite each other",
            advice="`pip uninstall opencv-python`, then reinstall opencv-python-headless",
        )
    if not (headless or full):
        return Finding(name="opencv", status=Status.FAIL, found="not installed", advice="`uv sync`")
    return Finding(name="opencv", status=Status.OK, found=str(headless or full))


def _torch() -> list[Finding]:
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a wheel for another CUDA cannot load its shared libraries
        advice = "`uv sync --reinstall-package torch`"
        return [Finding(name="devices", status=Status.FAIL, found=f"torch does not load: {error}", advice=advice)]
    if torch.cuda.is_available():
        gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        devices = ", ".join(f"{gpu.name} ({gpu.total_memory / 2**30:.0f} GiB)" for gpu in gpus)
    elif torch.backends.mps.is_available():
        devices = "Apple GPU (mps)"
    else:
        devices = "CPU only, which is enough for the demo"
    cores, threads = _cores(), torch.get_num_threads()
    found = f"{cores:g} usable, torch uses {threads} threads"
    return [
        Finding(name="devices", status=Status.OK, found=devices),
        # More threads than cores take turns: small networks then train several times slower.
        Finding(name="cores", status=Status.OK, found=found)
        if threads <= max(cores, 1)
        else Finding(
            name="cores",
            status=Status.WARN,
            found=found,
            advice=f"set OMP_NUM_THREADS={max(int(cores), 1)}: threads beyond the cores only get in each other's way",
        ),
    ]


def _cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> float:
    """Processors this process may use: a container's affinity and quota count, not the host's number."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        allowed, period = quota.read_text().split()
    except (OSError, ValueError):  # no control groups here
        return float(cores)
    return float(cores) if allowed == "max" else min(float(cores), int(allowed) / int(period))


def _renderer() -> Finding:
    # What `envs` would use: its own choice on a headless Linux machine where nobody made one.
    headless = sys.platform == "linux" and not os.environ.get("DISPLAY")
    backend = os.environ.get("MUJOCO_GL") or ("egl" if headless else "")
    drawn, trouble = _try_render(backend)
    if drawn is not None:
        device, seconds = str(drawn["device"]), float(str(drawn["seconds"]))
        found = f"{backend or 'default'} on {device}, {1000 * seconds:.1f} ms for a small picture"
        return Finding(name="renderer", status=Status.OK, found=found)
    found = f"MUJOCO_GL={backend or '(unset)'} does not render: {trouble}"
    for other in ("egl", "osmesa"):
        if sys.platform == "linux" and other != backend and _try_render(other)[0] is not None:
            advice = f"set MUJOCO_GL={other}, which works here"
            return Finding(name="renderer", status=Status.FAIL, found=found, advice=advice)
    advice = {
        "linux": "`apt-get install libegl1 libgl1` (Debian, Ubuntu) or `dnf install mesa-libEGL mesa-libGL`, "
        "then MUJOCO_GL=egl",
        "darwin": "unset MUJOCO_GL and run in a logged-in desktop session",
    }.get(sys.platform, "unset MUJOCO_GL and update the graphics driver")
    return Finding(name="renderer", status=Status.FAIL, found=found, advice=advice)


def _try_render(backend: str) -> tuple[Mapping[str, object] | None, str]:
    """What the other process drew, or None and why it did not."""
    environment = {name: value for name, value in os.environ.items() if name not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    if backend:
        environment["MUJOCO_GL"] = backend
    try:
        done = subprocess.run(
            [sys.executable, "-c", RENDER_SOURCE],
            env=environment,
            capture_output=True,
            text=True,
            timeout=RENDER_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None, f"no picture within {RENDER_TIMEOUT_S:g} s"
    except OSError as error:
        return None, f"could not start {sys.executable} ({error.strerror})"
    if done.returncode < 0:
        return None, f"the driver crashed (signal {-done.returncode})"
    if done.returncode > 0:
        # Python ends a traceback with the error, but destructors may complain after it.
        said = re.search(r"^(?!\s).*?\b(\w*Error: .*)$", done.stderr, re.MULTILINE)
        return None, said[1] if said else f"exit status {done.returncode}"
    try:
        drawn: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return None, "the renderer answered nothing that could be read"
    return (drawn, "") if drawn.get("brightest") else (None, "the picture is black")


def _writable(name: str, folder: Path) -> Finding:
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".grm-doctor-") as probe:
            probe.write(b"probe")
            probe.flush()
    except OSError as error:
        return Finding(
            name=name,
            status=Status.FAIL,
            found=f"cannot write to {folder} ({error.strerror})",
            advice="run in a folder you may write to, or make this one writable",
        )
    return Finding(name=name, status=Status.OK, found=f"{folder} is writable")


def _disk(folder: Path) -> Finding:
    try:
        free = shutil.disk_usage(folder).free / 1e9
    except OSError as error:
        return Finding(name="disk", status=Status.WARN, found=f"cannot be measured ({error.strerror})")
    if free < DISK_NEEDED_GB:
        return Finding(
            name="disk",
            status=Status.WARN,
            found=f"{free:.1f} GB free",
            advice=f"free {DISK_NEEDED_GB:g} GB: checkpoints and episodes of a run need about that",
        )
    return Finding(name="disk", status=Status.OK, found=f"{free:.0f} GB free")
