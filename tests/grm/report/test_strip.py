import numpy as np
import pytest
from PIL import Image

from grm.errors import OutputError, TraceError
from grm.report.strip import PHI, TRUTH, write_strip
from grm.reward import Frame

GREEN = (10, 200, 30)


@pytest.fixture
def frames():
    return [Frame(views={"top": np.full((16, 16, 3), GREEN, np.uint8)} if t < 10 else {}, time=t) for t in range(20)]


def pixels(path, colour):
    """Rows and columns of a colour, given as in HTML."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return np.argwhere((np.asarray(Image.open(path)) == wanted).all(2))


def draw(path, frames, potential, truth):
    write_strip(path, frames, potential, truth, view="top", title="hover", marked=3)


def test_pictures_and_curves_are_there(tmp_path, frames):
    path = tmp_path / "new" / "worst.png"
    draw(path, frames, np.full(20, 1.0), {0: 0.0, 19: 0.0})
    image = np.asarray(Image.open(path))
    assert (image == GREEN).all(2).sum() > 4 * 100 * 100, "pictures of the first half"
    # Above the legend: Φ at 1 all along is higher than the truth at 0 all along.
    legend = image.shape[0] - 50
    phi, truth = (p[p[:, 0] < legend] for p in (pixels(path, PHI), pixels(path, TRUTH)))
    assert phi[:, 0].max() + 200 < truth[:, 0].min()
    assert np.ptp(phi[:, 1]) > 800
    assert np.ptp(truth[:, 1]) > 800


def test_an_abstention_is_a_gap(tmp_path, frames):
    potential = np.full(20, 0.5)
    potential[5:15] = np.nan
    draw(tmp_path / "a.png", frames, potential, {0: 0.0})
    image = np.asarray(Image.open(tmp_path / "a.png"))
    curve = pixels(tmp_path / "a.png", PHI)
    columns = set(curve[curve[:, 0] < image.shape[0] - 50][:, 1].tolist())
    assert min(columns) < 200
    assert max(columns) > 1000
    assert columns.isdisjoint(range(450, 750))


def test_refusals(tmp_path, frames):
    with pytest.raises(TraceError, match="20 frames and potentials of shape"):
        draw(tmp_path / "a.png", frames, np.zeros(3), {})
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"a\.png cannot be written"):
        draw(tmp_path / "file" / "a.png", frames, np.zeros(20), {})
