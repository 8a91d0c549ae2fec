import numpy as np
import pytest

from grm.report.inspection import FilmMaker
from grm.reward import Frame


@pytest.mark.parametrize(("picture_bytes", "length"), [(1500, 200), (10_000, 40)])
def test_films_keep_to_their_share_of_the_page(picture_bytes: int, length: int) -> None:
    rng = np.random.default_rng(0)
    maker = FilmMaker(("front",), range(length), 48, picture_bytes)
    for t in range(length):
        image = rng.integers(0, 255, (48, 64, 3)).astype(np.uint8)
        maker.see(t, Frame(views={"front": image}, time=float(t)))
    sizes = [len(jpeg) for jpeg in maker.films()["front"].pictures]
    assert np.mean(sizes) <= 1.05 * picture_bytes
    if picture_bytes > max(sizes):
        assert np.ptp(sizes) < 0.1 * max(sizes), "there is room: all as good as allowed"
