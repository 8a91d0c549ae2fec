import dataclasses

import av
import numpy as np
import pytest

from grm.errors import MissingExtraError, OutputError
from grm.report.inspection import FilmMaker, kept_frames
from grm.report.overlay import write_overlay
from grm.report.rrd import write_rrd
from grm.reward import Frame

from ..test_inspection import inspection

LENGTH = 40


def episode():
    """Forty frames at two a second; the wrist camera is away at the tenth."""
    maker = FilmMaker(("front", "wrist"), kept_frames(LENGTH), 48, 5000)
    for t in range(LENGTH):
        views = {"front": np.full((48, 64, 3), 6 * t, np.uint8), "wrist": np.full((40, 40, 3), 200, np.uint8)}
        if t == 9:
            del views["wrist"]
        maker.see(t, Frame(views=views, time=t / 2))
    potential = np.linspace(0, 1, LENGTH)
    potential[20:24] -= 0.4
    potential[30] = np.nan
    return inspection(potential, success=0.5), maker.films()


def test_the_film_shows_every_camera_and_runs_at_the_episodes_speed(tmp_path):
    one, films = episode()
    path = tmp_path / "film ä.mp4"
    write_overlay(path, one, films, kept_frames(LENGTH))
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == 2
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(frames) == LENGTH
    for t in (0, 17, 39):
        assert frames[t][40, 20].mean() == pytest.approx(6 * t, abs=8)
        assert frames[t][40, 80].mean() == pytest.approx(200, abs=8)
    assert frames[9][40, 80].mean() < 20, "black while the camera was away"
    curves = [frame[70:].astype(int) for frame in frames]
    assert np.abs(curves[5] - curves[35]).max() > 100, "the dot moves"
    red = [(frame[:, :, 0] - frame[:, :, 1] > 60).sum() for frame in curves]
    assert red[20] > 20 > red[5], "what is being lost is said in red"


def test_a_rerun_recording_holds_pictures_and_numbers(tmp_path):
    rerun = pytest.importorskip("rerun")
    one, films = episode()
    path = tmp_path / "one.rrd"
    write_rrd(path, one, films, kept_frames(LENGTH))
    with pytest.warns(DeprecationWarning, match="deprecated"):  # what is to come instead is experimental yet
        recording = rerun.recording.load_recording(path)
    names = {str(column.entity_path) for column in recording.schema().component_columns()}
    assert {"/cameras/front", "/cameras/wrist", "/reward/potential", "/reward/success", "/events"} <= names
    assert "/reward/forward" not in names, "abstained throughout"


def test_what_cannot_be_written_is_said(tmp_path, monkeypatch):
    one, films = episode()
    with pytest.raises(OutputError, match="cannot write the film"):
        write_overlay(tmp_path / "nowhere" / "film.mp4", one, films, kept_frames(LENGTH))
    monkeypatch.setitem(__import__("sys").modules, "rerun", None)
    with pytest.raises(MissingExtraError, match="viz"):
        write_rrd(tmp_path / "one.rrd", one, films, kept_frames(LENGTH))


def test_a_film_of_one_moment(tmp_path):
    one, films = episode()
    single = dataclasses.replace(films["front"], pictures=films["front"].pictures[:1])
    write_overlay(tmp_path / "one.mp4", one, {"front": single}, np.array([0]))
    assert (tmp_path / "one.mp4").stat().st_size > 0
