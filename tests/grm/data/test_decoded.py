import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from grm.data import decoded
from grm.data.decoded import read_decoded
from grm.data.lerobot import EpisodeWriter, read_episodes
from grm.errors import OutputError, TraceError

from .test_lerobot import assert_same, make

EPISODES = [make(3), make(4, behaviour="undo", length=9)]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data") / "set"
    EpisodeWriter(root).append(*EPISODES)
    return root


@pytest.fixture
def root(written, tmp_path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "set"))


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


def refuse_to_decode(root):
    raise AssertionError("decoded again")


def assert_is(found, root) -> None:
    """Exactly what decoding the videos gives, to the last bit."""
    expected = list(read_episodes(root))
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)
        for name, images in other.views.items():
            np.testing.assert_array_equal(one.views[name], images, err_msg=name)


def test_as_read_from_the_videos_and_decoded_once(root, cache, monkeypatch):
    assert_is(list(read_decoded(root, cache)), root)
    monkeypatch.setattr(decoded, "read_episodes", refuse_to_decode)
    found = list(read_decoded(root, cache))
    assert_is(found, root)
    assert [e.sub_tasks for e in found] == [e.sub_tasks for e in EPISODES]
    [folder] = cache.iterdir()
    for view in ("top", "side"):
        size = (folder / f"{view}.raw").stat().st_size
        assert size == sum(e.views[view].size for e in EPISODES), "the pictures are on disk as they are"


def test_pictures_are_mapped_and_cannot_be_written_to(root, cache):
    for episode in read_decoded(root, cache):
        images = episode.views["top"]
        while isinstance(images.base, np.ndarray) and not isinstance(images, np.memmap):
            images = images.base
        assert isinstance(images, np.memmap)
        with pytest.raises(ValueError, match="read-only"):
            episode.views["top"][0] = 0


def test_a_data_set_that_grew_is_decoded_again(root, cache):
    list(read_decoded(root, cache))
    EpisodeWriter(root).append(make(5))
    found = list(read_decoded(root, cache))
    assert [episode.seed for episode in found] == [3, 4, 5]
    assert_is(found, root)


def test_a_data_set_labelled_anew_is_decoded_again(root, cache):
    """As many episodes of as many frames as before: only their labels differ."""
    list(read_decoded(root, cache))
    shutil.rmtree(root)
    EpisodeWriter(root).append(*(dataclasses.replace(e, progress=e.progress / 2) for e in EPISODES))
    found = list(read_decoded(root, cache))
    np.testing.assert_allclose(found[0].progress, EPISODES[0].progress / 2)


@pytest.mark.parametrize("again", [False, True], ids=["first time", "of a data set that grew"])
def test_a_decode_that_is_killed_leaves_nothing_to_be_taken_for_whole(root, cache, monkeypatch, again):
    class Killed(BaseException):
        pass

    if again:
        list(read_decoded(root, cache))
        EpisodeWriter(root).append(make(5))

    def killed(root):
        yield next(read_episodes(root))
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(decoded, "read_episodes", killed)
        with pytest.raises(Killed):
            list(read_decoded(root, cache))
    assert_is(list(read_decoded(root, cache)), root)
    assert len(list(cache.iterdir())) == 1, "the half-made one is still there"


def test_data_sets_of_one_cache_do_not_mix(root, cache, tmp_path):
    other = tmp_path / "elsewhere" / "set"
    EpisodeWriter(other).append(make(7, views=("front",)))
    for _ in range(2):
        assert_is(list(read_decoded(root, cache)), root)
        assert_is(list(read_decoded(other, cache)), other)


def test_what_is_no_data_set_and_no_folder_for_it(root, cache, tmp_path):
    (tmp_path / "empty").mkdir()
    for nothing in (tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises(TraceError, match="not a LeRobotDataset"):
            list(read_decoded(nothing, cache))
    assert not cache.exists()
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot be written .*choose another cache folder"):
        list(read_decoded(root, tmp_path / "file"))
