"""What `grm inspect` costs: beside the bare work, in memory for a long recording, and as a page.

Wall time: twenty episodes of three cameras and 300 frames, written here, through the whole command, every frame judged;
in turn with it the bare work on the same frames: decode every video, and the encoder's forward on the pictures. Each
in a process of its own, the start of Python and its imports left out. Memory: the largest resident set of a process
that inspects one recording of three cameras and `--minutes`. First paint: of the page, in Chromium, where there is one.
"""

import argparse
import json
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from grm.metrics import Interval

from .results import write_result

VIEWS = ("corner", "front", "wrist")
FPS = 10
SIZE = 128
CHUNK = 32


def write_film(path: Path, frames: int, seed: int, size: int) -> None:
    """A square that wanders over a slow gradient: a picture that compresses as a camera's does, and is never twice."""
    import av

    rng = np.random.default_rng(seed)
    background = np.linspace(40, 200, size)[None, :, None] * rng.uniform(0.5, 1, 3) + rng.normal(0, 6, (size, size, 3))
    speed, start = rng.uniform(0.01, 0.05, 2), rng.uniform(0, 6, 2)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast", "crf": "20"})
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for t in range(frames):
            image = np.clip(background, 0, 255).astype(np.uint8)
            y, x = ((np.sin(start + speed * t) + 1) / 2 * (size - 24)).astype(int)
            image[y : y + 24, x : x + 24] = (220, 60, 40)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def write_episodes(root: Path, count: int, frames: int, size: int) -> None:
    for number in range(count):
        folder = root / f"episode_{number:02d}"
        folder.mkdir(parents=True)
        for k, view in enumerate(VIEWS):
            write_film(folder / f"cam_{view}.mp4", frames, 10 * number + k, size)


def child(*arguments: str) -> dict[str, float]:
    """What a process of this module says: its work's seconds and its largest resident set."""
    command = [sys.executable, "-m", "benchmarks.inspect", *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def bare(root: Path) -> None:
    """Decode every video, and put every picture through the encoder: in float32, in chunks, as the GRM gets them."""
    import av
    import torch

    from grm.models.multiview import GRM

    torch.set_num_threads(1)
    encoder = GRM.from_pretrained().network.encoder
    size = GRM.from_pretrained().network.architecture.image_size
    began = time.perf_counter()
    for path in sorted(root.rglob("*.mp4")):
        pictures = []
        with av.open(str(path)) as container, torch.inference_mode():
            for frame in container.decode(video=0):
                pictures.append(frame.to_ndarray(format="rgb24"))
                if len(pictures) == CHUNK:
                    _encode(encoder, pictures, size)
                    pictures.clear()
            if pictures:
                _encode(encoder, pictures, size)
    said(time.perf_counter() - began)


def _encode(encoder, pictures: list[np.ndarray], size: int) -> None:
    import torch
    import torch.nn.functional as F

    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float().mul_(1 / 255)
    encoder(F.interpolate(images, size=(size, size), mode="bilinear", antialias=True))


def whole(root: Path, out: Path) -> None:
    """The command, as a user would give it."""
    import contextlib
    import io

    import torch

    from grm.cli import main as grm

    torch.set_num_threads(1)
    began = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        grm(
            ["inspect", str(root), "--out", str(out), "--every", "1", "--instruction", "push the square", "--goal", "0"]
        )
    said(time.perf_counter() - began)


def said(seconds: float) -> None:
    print(json.dumps({"seconds": seconds, "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}))


def first_paint(page: Path) -> float | None:
    """Seconds until Chromium has painted something of the page; None without Chromium."""
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    if executable is None:
        return None
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        times = []
        for _ in range(5):
            tab = browser.new_page()
            tab.goto(page.as_uri())
            tab.wait_for_function("performance.getEntriesByName('first-contentful-paint').length > 0")
            times.append(tab.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime") / 1000)
            tab.close()
        browser.close()
    return float(np.median(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--minutes", type=float, default=30.0, help="of the long recording, at 10 frames a second")
    parser.add_argument("--child", choices=["bare", "whole"], help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child == "bare":
        return bare(options.root)
    if options.child == "whole":
        return whole(options.root, options.out)

    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder)
        write_episodes(room / "some", options.episodes, options.frames, SIZE)
        for number in range(options.rounds):
            out = room / f"out{number}"
            inspected = child("--child", "whole", "--root", str(room / "some"), "--out", str(out))
            alone = child("--child", "bare", "--root", str(room / "some"))
            ratio = inspected["seconds"] / alone["seconds"]
            rows.append(
                {"round": number, "inspect_s": inspected["seconds"], "bare_s": alone["seconds"], "wall_ratio": ratio}
            )
            print(rows[-1], flush=True)
        page = out / "index.html"
        page_mb, paint = page.stat().st_size / 1e6, first_paint(page)
        write_episodes(room / "long", 1, round(options.minutes * 60 * FPS), 480)
        long = child("--child", "whole", "--root", str(room / "long"), "--out", str(room / "out-long"))
    ratios = [float(str(row["wall_ratio"])) for row in rows]
    summary: dict[str, float | Interval] = {
        "wall_ratio": Interval(float(np.median(ratios)), min(ratios), max(ratios)),
        "memory_gib": long["gib"],
        "page_mb": page_mb,
        **({} if paint is None else {"first_paint_s": paint}),
        "frames_per_second": options.episodes
        * options.frames
        / float(np.median([float(str(r["inspect_s"])) for r in rows])),
    }
    print(summary)
    about = {
        "interval": "median, least and largest of the rounds",
        "processor": platform.processor() or platform.machine(),
        "long_recording": {"minutes": options.minutes, "pixels": 480, "frames": round(options.minutes * 60 * FPS)},
    }
    print(write_result("inspect", summary, seeds=[0], rows=rows, **about))
    return None


if __name__ == "__main__":
    main()
