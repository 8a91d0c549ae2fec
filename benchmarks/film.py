"""An accelerated film of a session's page: what a person beside the robot sees, two minutes long."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
from PIL import Image
from playwright.sync_api import Error as PlaywrightError
from playwright.sync_api import sync_playwright

from robot_io.page import served
from robot_io.session import Session

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
EVERY_S = 0.5
LENGTH_S = 120.0
WIDTH, HEIGHT = 1280, 1180


@contextmanager
def filmed(session: Session, film: Path) -> Iterator[None]:
    """While this lasts, a browser looks at the session's page; afterwards the film is there, and its last picture.

    Args:
        session: which runs meanwhile.
        film: MP4 to write (H.264), with a JPEG of the same name beside it.
    """
    pictures = film.with_suffix("")
    shutil.rmtree(pictures, ignore_errors=True)
    pictures.mkdir(parents=True)
    over = threading.Event()
    failed: list[PlaywrightError] = []

    def look(address: str) -> None:
        try:
            with sync_playwright() as playwright:
                chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
                page = chromium.new_page(viewport={"width": WIDTH, "height": HEIGHT})
                page.goto(address)
                number = 0
                while not over.wait(EVERY_S):
                    page.screenshot(path=pictures / f"{number:05d}.jpg", type="jpeg", quality=90)
                    number += 1
                chromium.close()
        except PlaywrightError as error:  # told to who waits for the film, once the session is over
            failed.append(error)

    with served(session, 0) as address:
        looking = threading.Thread(target=look, args=(address,), name="film")
        looking.start()
        try:
            yield
        finally:
            over.set()
            looking.join()
    if failed:
        raise failed[0]
    encode(sorted(pictures.glob("*.jpg")), film)
    shutil.rmtree(pictures)


def encode(pictures: list[Path], film: Path) -> None:
    """Pictures as a film of `LENGTH_S` at up to 30 pictures a second, evenly chosen if they are too many."""
    rate = int(np.clip(round(len(pictures) / LENGTH_S), 1, 30))
    count = min(len(pictures), round(rate * LENGTH_S))
    chosen = [pictures[k] for k in np.linspace(0, len(pictures) - 1, count).round().astype(int)]
    with av.open(str(film), "w") as container:
        stream = container.add_stream(
            "libx264", rate=rate, options={"crf": "30", "preset": "slow", "tune": "animation"}
        )
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for path in chosen:
            container.mux(stream.encode(av.VideoFrame.from_image(Image.open(path))))
        container.mux(stream.encode())
    shutil.copy(chosen[-1], film.with_suffix(".jpg"))
