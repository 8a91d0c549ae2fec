"""Tests of `benchmarks.film`."""

import time

import av
import numpy as np
import pytest
from PIL import Image

from benchmarks import film
from robot_io.session import Session


def test_pictures_become_a_film_of_the_length_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(film, "LENGTH_S", 2.0)
    monkeypatch.setattr(film, "WIDTH", 64)
    monkeypatch.setattr(film, "HEIGHT", 48)
    pictures = []
    for k in range(100):
        pictures.append(tmp_path / f"{k:05d}.jpg")
        Image.fromarray(np.full((48, 64, 3), 2 * k, np.uint8)).save(pictures[-1])
    film.encode(pictures, tmp_path / "film.mp4")
    with av.open(str(tmp_path / "film.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24").mean() for frame in container.decode(video=0)]
    assert len(frames) == 60, "two seconds at the most pictures a second"
    assert frames[0] < 5
    assert frames[-1] > 190
    assert Image.open(tmp_path / "film.jpg").size == (64, 48)


@pytest.mark.skipif(film.CHROMIUM is None, reason="no Chromium here; `apt-get install chromium` brings one")
def test_a_page_is_filmed(tmp_path, monkeypatch):
    monkeypatch.setattr(film, "EVERY_S", 0.05)
    with film.filmed(Session(robot=None, learner=None), tmp_path / "page.mp4"):
        for _ in range(400):
            if len(list((tmp_path / "page").glob("*.jpg"))) > 3:
                break
            time.sleep(0.05)
    with av.open(str(tmp_path / "page.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) >= 3
    assert not (tmp_path / "page").exists()
