"""The house rules that no other tool checks: who may import whom, what stays behind which door, what a wheel holds."""

import ast
import importlib
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from grm._layout import SIBLINGS, check_layout
from grm.errors import ShadowedPackageError

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("grm", *SIBLINGS)
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

DOORS = {
    "lerobot": ("grm/data/lerobot.py", "robot_io/"),
    "stable_baselines3": ("policies/", "shaping/sb3.py"),
    "cv2": ("grm/data/video.py", "robot_io/cameras.py"),
    "mujoco": ("envs/",),
    "metaworld": ("envs/",),
    "fastapi": ("robot_io/server.py",),
    "httpx": ("grm/client.py", "grm/text/endpoint.py"),
    "transformers": ("grm/text/tiny.py", "grm/text/discriminative.py"),
}
"""Heavy third parties, and the only files or folders that may import them."""

EXCEPT_ALL_ALLOWED = ("robot_io/loop.py",)
"""A subscriber's failure must not stop a robot half-way: its guard logs the traceback and marks the subscriber dead."""


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Top-level name and line of every absolute import, lazy ones inside functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0], node.lineno


def broken_doors(source: str, path: str) -> list[str]:
    return [
        f"{path}:{line} imports {name}, whose doors are {', '.join(DOORS[name])}"
        for name, line in imports(ast.parse(source))
        if name in DOORS
        and not any(path == door or (door.endswith("/") and path.startswith(door)) for door in DOORS[name])
    ]


def broken_habits(source: str, path: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            found.append(f"{path}:{node.lineno} prints; raise, return, or let the command line say it")
        if isinstance(node, ast.ExceptHandler) and path not in EXCEPT_ALL_ALLOWED:
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            if any(c is None or (isinstance(c, ast.Name) and c.id in ("Exception", "BaseException")) for c in caught):
                found.append(f"{path}:{node.lineno} catches everything; name the errors it can answer for")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_doors_and_habits(path: Path) -> None:
    source, name = path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()
    assert broken_doors(source, name) + broken_habits(source, name) == []


def test_the_checks_themselves_see() -> None:
    assert broken_doors("def f():\n    from mujoco.egl import x", "grm/x.py")[0].startswith("grm/x.py:2 imports mujoco")
    assert broken_doors("import os, cv2", "envs/x.py") != []
    assert broken_doors("import cv2", "grm/data/video.py") == []
    assert broken_doors("import cv2", "grm/data/video.py.py") != []
    assert broken_doors("from .mujoco import x", "grm/x.py") == []
    assert broken_habits("print(1)", "grm/x.py") != []
    assert broken_habits("console.print(1)", "grm/x.py") == []
    for clause in ("except Exception", "except (ValueError, BaseException) as e", "except"):
        assert broken_habits(f"try:\n    f()\n{clause}:\n    pass", "grm/x.py") != [], clause
    assert broken_habits("try:\n    f()\nexcept ValueError:\n    pass", "grm/x.py") == []


def test_no_drawers_for_odds_and_ends() -> None:
    drawers = ("utils", "util", "common", "helpers", "misc")
    assert [str(path) for path in SOURCES if path.stem in drawers or path.parent.name in drawers] == []


def test_imports_point_down_only() -> None:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as main; main()"]
    done = subprocess.run([*command, "--no-cache", "--no-logo"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_every_package_is_ours() -> None:
    check_layout()


@pytest.mark.parametrize("stranger", SIBLINGS)
def test_a_stranger_of_the_same_name_is_refused(stranger: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / stranger).mkdir()
    (tmp_path / stranger / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, stranger, raising=False)
    with pytest.raises(ShadowedPackageError) as caught:
        check_layout()
    for part in (repr(stranger), str(tmp_path / stranger), str(ROOT / stranger), "uninstall"):
        assert part in str(caught.value)


def test_a_missing_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "envs", None)
    with pytest.raises(ShadowedPackageError, match="resolves to nothing"):
        check_layout()


def every_package() -> list[str]:
    nested = [path.parent.relative_to(ROOT) for path in SOURCES if path.name == "__init__.py"]
    return [".".join(path.parts) for path in nested]


@pytest.mark.parametrize("package", every_package())
def test_every_public_name_imports(package: str) -> None:
    module = importlib.import_module(package)
    names = getattr(module, "__all__", [])
    assert len(set(names)) == len(names), "a name is listed twice"
    assert [name for name in names if not hasattr(module, name)] == []


@pytest.mark.slow
def test_a_wheel_holds_the_packages_and_nothing_else(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "uv", "build", "--wheel", "--out-dir", str(tmp_path)], cwd=ROOT, check=True)
    [wheel] = tmp_path.glob("*.whl")
    names = [Path(name) for name in zipfile.ZipFile(wheel).namelist()]
    assert {name.parts[0] for name in names if not name.parts[0].endswith(".dist-info")} == set(PACKAGES)
    assert [name for name in names if "tests" in name.parts or "examples" in name.parts] == []
    shipped = {name.as_posix() for name in names}
    assert {path.relative_to(ROOT).as_posix() for path in SOURCES} <= shipped
    assert {"grm/report/head.html", "grm/report/page.html", "grm/report/text.html"} <= shipped
