import json

import numpy as np
import pytest

from grm.data.replay import FILE, read_replay, write_replay
from grm.errors import CheckpointError, OutputError

from ...tiny import square

EPISODES = [
    square(0, views=("top", "side"), length=20),
    square(1, task="left-v3", behaviour="undo", length=3),
]


@pytest.fixture
def folder(tmp_path):
    write_replay(tmp_path, EPISODES, frames=8)
    return tmp_path


def test_what_is_kept_is_evenly_spaced_with_both_ends(folder):
    long, short = read_replay(folder)
    picked = [0, 3, 5, 8, 11, 14, 16, 19]  # linspace(0, 19, 8), rounded
    assert (len(long), len(short)) == (8, 3), "a short episode is kept whole, no frame twice"
    np.testing.assert_allclose(long.progress, EPISODES[0].progress[picked], atol=5e-5)
    assert sorted(long.views) == ["side", "top"]
    for name, images in long.views.items():
        error = np.abs(images.astype(int) - EPISODES[0].views[name][picked])
        assert error.mean() < 2, "JPEG, but the same pictures in the same order"
    for read, written in zip((long, short), EPISODES, strict=True):
        for field in ("task", "instruction", "behaviour", "rate_hz", "succeeded"):
            assert getattr(read, field) == getattr(written, field), field
    assert long.success.tolist() == [False] * 7 + [True]
    assert not short.success.any()


def test_a_new_sample_replaces_the_old_one_and_leaves_nothing_else(folder):
    write_replay(folder, EPISODES[:1], frames=2)
    [episode] = read_replay(folder)
    assert len(episode) == 2
    assert [path.name for path in folder.iterdir()] == [FILE]


def test_a_checkpoint_without_a_sample_has_none(tmp_path):
    assert list(read_replay(tmp_path)) == []


def test_an_empty_sample_is_read_as_empty(tmp_path):
    write_replay(tmp_path, [])
    assert list(read_replay(tmp_path)) == []


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.95])
def test_a_cut_file_is_refused(folder, keep):
    whole = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(CheckpointError, match=r"replay\.npz is damaged"):
        list(read_replay(folder))


@pytest.mark.parametrize(
    ("entries", "sizes", "images"),
    [
        ([{"views": ["top"], "progress": [0.0, 1.0]}], [3], b"abc"),  # a picture is missing
        ([{"views": ["top"], "progress": [0.0, 1.0]}], [3, 3], b"abc"),  # bytes are
        ([{"views": ["top"]}], [], b""),
        ("nothing", [], b""),
    ],
)
def test_contents_that_disagree_are_refused(tmp_path, entries, sizes, images):
    np.savez(
        tmp_path / FILE,
        index=np.frombuffer(json.dumps(entries).encode(), np.uint8),
        sizes=np.array(sizes, np.int64),
        images=np.frombuffer(images, np.uint8),
    )
    with pytest.raises(CheckpointError, match="is damaged"):
        list(read_replay(tmp_path))


def test_no_pickle_is_loaded(tmp_path):
    np.savez(tmp_path / FILE, index=np.array([{"views": []}], object), sizes=np.zeros(0), images=np.zeros(0))
    with pytest.raises(CheckpointError, match="is damaged"):
        list(read_replay(tmp_path))


def test_a_folder_that_cannot_be_written_is_an_output_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="choose another output folder"):
        write_replay(tmp_path / "file", EPISODES)
