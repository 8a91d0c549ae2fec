"""The doctor: every failure it can meet becomes a finding with advice, none becomes an exception."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from grm import doctor
from grm.doctor import Finding, Status, diagnose, render
from grm.errors import ShadowedPackageError


def answer(monkeypatch: pytest.MonkeyPatch, respond: Callable[[str], subprocess.CompletedProcess[str]]) -> None:
    """Replace the drawing process: `respond` is asked with the value of MUJOCO_GL it would have run under."""

    def run(
        command: list[str], *, env: dict[str, str], timeout: float, **_: object
    ) -> subprocess.CompletedProcess[str]:
        assert command[0] == sys.executable
        assert timeout == doctor.RENDER_TIMEOUT_S
        return respond(env.get("MUJOCO_GL", ""))

    monkeypatch.setattr(doctor.subprocess, "run", run)
    monkeypatch.setattr(doctor.sys, "platform", "linux")


def ended(returncode: int, stdout: str = "", stderr: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.CompletedProcess([], returncode, stdout, stderr)


DRAWN = '{"brightest": 200, "seconds": 0.0125, "device": "llvmpipe"}\n'


def test_diagnose_looks_at_everything_and_all_can_be_shown() -> None:
    findings = diagnose()
    by_name = {finding.name: finding for finding in findings}
    assert len(by_name) == len(findings), "two findings share a name"
    expected = {"python", "packages", "torch", "mujoco", "lerobot", "devices", "cores", "renderer", "disk"}
    assert expected <= by_name.keys()
    assert by_name["packages"].status is Status.OK
    assert by_name["numpy"].found.startswith("2.")
    # Whatever this machine is: what is not fine comes with something to do.
    assert all(finding.advice for finding in findings if finding.status is not Status.OK)
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(render(findings))
    shown = console.export_text()
    assert all(name in shown for name in by_name)


def test_advice_and_brackets_are_shown_as_they_are() -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(render([Finding(name="x", status=Status.FAIL, found="/a/[red]b", advice="do [this]")]))
    assert "/a/[red]b" in console.export_text(clear=False)
    assert "→ do [this]" in console.export_text()


def test_the_chosen_backend_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    answer(monkeypatch, lambda backend: (tried.append(backend), ended(0, DRAWN))[1])
    finding = doctor._renderer()
    assert tried == ["osmesa"]
    assert finding.status is Status.OK
    assert finding.found == "osmesa on llvmpipe, 12.5 ms for a small picture"


@pytest.mark.parametrize(("display", "expected"), [("", "egl"), (":0", "")])
def test_the_default_backend_is_that_of_envs(monkeypatch: pytest.MonkeyPatch, display: str, expected: str) -> None:
    tried: list[str] = []
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setenv("DISPLAY", display)
    answer(monkeypatch, lambda backend: (tried.append(backend), ended(0, DRAWN))[1])
    assert doctor._renderer().status is Status.OK
    assert tried == [expected]


TRACEBACK = """Traceback (most recent call last):
  File "renderer.py", line 3, in <module>
    raise SomeError: not this line, it is indented
ImportError: Cannot initialize a EGL device display
Exception ignored in: <function Renderer.__del__>
AttributeError: 'Renderer' object has no attribute 'close'
"""


@pytest.mark.parametrize(
    ("process", "reason"),
    [
        (ended(-11), "the driver crashed (signal 11)"),
        (ended(1, stderr=TRACEBACK), "ImportError: Cannot initialize a EGL device display"),
        (ended(1, stderr="/x/glfw.py:9: GLFWError: no window system"), "GLFWError: no window system"),
        (ended(3), "exit status 3"),
        (ended(0, ""), "answered nothing that could be read"),
        (ended(0, "MESA: warning\n"), "answered nothing that could be read"),
        (ended(0, '{"brightest": 0, "seconds": 0.1, "device": "x"}'), "the picture is black"),
    ],
)
def test_a_renderer_that_fails(
    monkeypatch: pytest.MonkeyPatch, process: subprocess.CompletedProcess[str], reason: str
) -> None:
    monkeypatch.setenv("MUJOCO_GL", "egl")
    answer(monkeypatch, lambda backend: process)
    finding = doctor._renderer()
    assert finding.status is Status.FAIL
    assert finding.found.startswith("MUJOCO_GL=egl does not render: ")
    assert finding.found.endswith(reason)
    assert "apt-get install libegl1 libgl1" in finding.advice


def test_a_renderer_that_hangs_or_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(backend: str) -> subprocess.CompletedProcess[str]:
        raise subprocess.TimeoutExpired("python", doctor.RENDER_TIMEOUT_S)

    def refuse(backend: str) -> subprocess.CompletedProcess[str]:
        raise OSError(12, "Cannot allocate memory")

    answer(monkeypatch, hang)
    assert "no picture within 60 s" in doctor._renderer().found
    answer(monkeypatch, refuse)
    assert "Cannot allocate memory" in doctor._renderer().found


def test_a_backend_that_works_is_recommended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "egl")
    answer(monkeypatch, lambda backend: ended(0, DRAWN) if backend == "osmesa" else ended(-6))
    finding = doctor._renderer()
    assert finding.status is Status.FAIL
    assert finding.advice == "set MUJOCO_GL=osmesa, which works here"


def test_missing_and_doubled_distributions(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"numpy": "2.0", "opencv-python": "4.9", "opencv-python-headless": "4.10"}
    monkeypatch.setattr(doctor, "_version", versions.get)
    found = {finding.name: finding for finding in doctor._distributions()}
    assert found["numpy"] == Finding(name="numpy", status=Status.OK, found="2.0")
    assert found["lerobot"].status is Status.FAIL
    assert found["lerobot"].advice
    assert doctor._opencv().status is Status.WARN
    del versions["opencv-python"]
    assert doctor._opencv() == Finding(name="opencv", status=Status.OK, found="4.10")
    versions.clear()
    assert doctor._opencv().status is Status.FAIL


def test_a_shadowed_package_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def shadowed() -> None:
        raise ShadowedPackageError("package 'envs' resolves to /elsewhere/envs")

    monkeypatch.setattr(doctor, "check_layout", shadowed)
    finding = doctor._layout()
    assert finding.status is Status.FAIL
    assert "/elsewhere/envs" in finding.found


def test_cores_respect_a_container_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    quota = tmp_path / "cpu.max"
    assert doctor._cores(quota) == 8, "no control groups"
    quota.write_text("max 100000\n")
    assert doctor._cores(quota) == 8
    quota.write_text("150000 100000\n")
    assert doctor._cores(quota) == 1.5
    quota.write_text("9900000 100000\n")
    assert doctor._cores(quota) == 8, "a quota above the affinity adds no cores"


def test_too_many_threads_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_cores", lambda: 1.5)
    monkeypatch.setattr("torch.get_num_threads", lambda: 64)
    [_, cores] = doctor._torch()
    assert cores.status is Status.WARN
    assert "OMP_NUM_THREADS=1:" in cores.advice
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    [_, cores] = doctor._torch()
    assert cores.status is Status.OK


def test_folders_and_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor._writable("here", tmp_path).status is Status.OK
    assert list(tmp_path.iterdir()) == [], "the probe was left behind"
    assert doctor._writable("nowhere", tmp_path / "missing").status is Status.FAIL
    assert doctor._disk(tmp_path / "missing").status is Status.WARN
    monkeypatch.setattr(doctor, "DISK_NEEDED_GB", 1e9)
    finding = doctor._disk(tmp_path)
    assert finding.status is Status.WARN
    assert finding.found.endswith("GB free")
