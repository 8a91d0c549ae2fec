from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grm.data.augment import Augmentation, augment, broken_pictures
from grm.errors import TraceError

NONE = Augmentation.none()


def pictures(shape=(4, 6, 3, 16, 20), seed=0) -> np.ndarray:
    """Bytes away from both ends, no two pictures alike."""
    return np.random.default_rng(seed).integers(60, 190, (*shape, 3), dtype=np.uint8)


def as_floats(images: np.ndarray) -> np.ndarray:
    return np.moveaxis(images, -1, 3).astype(np.float32) / 255


def corrupted(images: np.ndarray, seed: int = 0, **chances: float):
    return augment(images, replace(NONE, **chances), np.random.default_rng(seed))


def test_nothing_drawn_leaves_the_pictures():
    images = pictures()
    result = corrupted(images)
    np.testing.assert_allclose(result.images, as_floats(images), atol=1e-6)
    assert result.images.dtype == torch.float32
    assert result.present.all()
    assert result.valid.all()
    assert result.shows.all()


def test_the_callers_pictures_are_never_written_to():
    images = pictures()
    before = images.copy()
    images.setflags(write=False)
    augment(images, Augmentation(compression=1.0, frozen=0.2, swapped=0.5), np.random.default_rng(0))
    np.testing.assert_array_equal(images, before)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), views=st.integers(1, 4), moments=st.integers(1, 5))
def test_whatever_is_drawn_holds_together_and_repeats(seed, views, moments):
    images = pictures((3, moments, views, 9, 11), seed)
    chances = {"lost": 0.5, "dropped": 0.3, "black": 0.1, "static": 0.1, "frozen": 0.3, "swapped": 0.3, "blind": 0.2}
    result = augment(images, Augmentation(**chances), np.random.default_rng(seed))
    again = augment(images, Augmentation(**chances), np.random.default_rng(seed))
    assert torch.equal(result.images, again.images)
    assert result.images.shape == (3, moments, views, 3, 9, 11)
    assert result.images.min() >= 0
    assert result.images.max() <= 1
    assert result.present.any(-1).all(), "a moment without any view"
    assert not (result.shows & ~result.present).any()
    blind = ~result.shows.any(-1)
    assert not (blind & result.valid).any()
    assert not result.images[torch.from_numpy(~result.present)].any(), "something leaks through an absent view"
    dead = result.images.numpy().reshape(3, moments, views, -1).max(-1) == 0
    assert not result.valid[dead.all(-1)].any()
    assert not result.shows[dead].any()
    assert blind[dead.all(-1)].all()


def test_a_shift_is_one_per_episode_and_view_and_repeats_the_edge():
    height, width = 16, 20
    ramp = np.empty((8, 3, 2, height, width, 3), np.uint8)
    ramp[..., 0] = 5 * np.arange(height)[:, None]
    ramp[..., 1] = 5 * np.arange(width)
    ramp[..., 2] = 7
    result = np.rint(corrupted(ramp, shift=3).images.numpy() * 255).astype(int)
    seen = set()
    for e in range(8):
        for v in range(2):
            y = result[e, 0, v, 0, 8, 8] // 5 - 8
            x = result[e, 0, v, 1, 8, 8] // 5 - 8
            seen.add((y, x))
            rows = np.clip(np.arange(height) + y, 0, height - 1)
            columns = np.clip(np.arange(width) + x, 0, width - 1)
            for m in range(3):
                np.testing.assert_array_equal(
                    result[e, m, v], np.moveaxis(ramp[e, m, v][rows][:, columns], -1, 0), err_msg=f"{y}, {x}"
                )
    assert len(seen) > 8
    assert np.abs(list(seen)).max() == 3


@pytest.mark.parametrize(("zoom", "turn"), [(0.2, 0.0), (0.0, 0.03)])
def test_a_camera_is_nearer_or_turned_about_the_centre_the_same_in_all_moments(zoom, turn):
    height, width = 16, 20
    ramp = np.full((8, 3, 2, height, width, 3), 7, np.uint8)
    ramp[..., 0], ramp[..., 1] = 5 * np.arange(height)[:, None], 5 * np.arange(width)
    where = corrupted(ramp, zoom=zoom, turn=turn).images.numpy()[:, :, :, :2] * 51  # (E, M, V, (y, x), h, w)
    np.testing.assert_allclose(where, where[:, :1].repeat(3, 1), atol=1e-4)
    inner = where[:, 0, :, :, 5:11, 6:14]
    np.testing.assert_allclose(inner.mean((-2, -1)), np.broadcast_to([7.5, 9.5], (8, 2, 2)), atol=1e-3)
    down, right = np.diff(inner, axis=-2).mean((-2, -1)), np.diff(inner, axis=-1).mean((-2, -1))  # (E, V, (y, x))
    np.testing.assert_allclose(down[..., 0], right[..., 1], atol=1e-4, err_msg="also in pictures that are no squares")
    np.testing.assert_allclose(down[..., 1], -right[..., 0], atol=1e-4)
    size, angle = 1 / np.hypot(*right.T), np.arctan2(*right.T) / (2 * np.pi)
    for drawn, low, high in ((size, 1 / (1 + zoom), 1 + zoom), (angle, -turn, turn)):
        assert low - 1e-4 <= drawn.min() <= drawn.max() <= high + 1e-4
        assert np.ptp(drawn) >= 0.7 * (high - low)
    assert (np.diff(size + angle, axis=0) != 0).all(), "each camera its own"
    assert (np.diff(size + angle, axis=1) != 0).all(), "in each episode"


def test_gain_and_bias_are_what_they_say():
    flat = np.full((40, 2, 2, 8, 8, 3), 100, np.uint8)
    gained = corrupted(flat, gain=0.2).images.numpy() * 255
    assert 80 <= gained.min() < 85
    assert 115 < gained.max() <= 120.001
    np.testing.assert_allclose(gained, gained[:, :1, :, :, :1, :1].repeat(2, 1) + np.zeros((8, 8)), atol=1e-3)
    assert np.ptp(gained[:, 0, :, :, 0, 0], axis=-1).max() > 20, "channels all get one gain"
    biased = corrupted(flat, bias=0.1).images.numpy() - 100 / 255
    assert -0.1 <= biased.min() < -0.08
    assert 0.08 < biased.max() <= 0.1
    np.testing.assert_allclose(np.ptp(biased, axis=3), 0, atol=1e-6)


def test_contrast_keeps_the_mean_colour():
    halves = np.full((20, 2, 1, 16, 16, 3), 80, np.uint8)
    halves[..., ::16, :, :] = halves[..., 8:, :, :] = 120  # mean 100 where it is sampled, which is every eighth row
    result = corrupted(halves, contrast=0.5).images.numpy() * 255
    low, high = result[..., 1, 0], result[..., 8, 0]
    reference = result[:, :, :, :, ::8, ::8].mean((-1, -2))
    assert np.ptp((high - low)[..., 0]) > 20
    np.testing.assert_allclose(reference, 120, atol=1e-3)


def test_hue_leaves_greys_and_turns_red():
    images = np.full((30, 1, 1, 4, 4, 3), 90, np.uint8)
    np.testing.assert_allclose(corrupted(images, hue=0.2).images, 90 / 255, atol=1e-6)
    images[..., 0] = 150
    turned = corrupted(images, hue=1 / 12).images.numpy()[:, 0, 0, :, 0, 0] * 255
    np.testing.assert_allclose(turned.sum(-1), 330, atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(turned - 110, axis=-1), np.linalg.norm([40, 20, 20]), atol=1e-3)
    assert turned.argmax(-1).max() == 0, "a twelfth of a turn at most, and red is another colour"
    assert np.ptp(turned[:, 1]) > 20


def test_noise_has_the_drawn_scale_and_differs_between_moments():
    flat = np.full((30, 3, 1, 32, 32, 3), 128, np.uint8)
    result = corrupted(flat, noise=1.0, noise_scale=0.05).images.numpy() - 128 / 255
    deviation = result.std((-1, -2, -3))
    assert deviation.min() < 0.01
    assert 0.04 < deviation.max() < 0.053
    np.testing.assert_allclose(deviation, deviation[:, :1].repeat(3, 1), rtol=0.1)
    assert np.abs(result.mean((-1, -2, -3))).max() < 0.005
    loud = result[deviation[:, 0, 0] > 0.02]
    for a, b in ((0, 1), (1, 2)):
        for one in loud:
            assert abs(np.corrcoef(one[a].ravel(), one[b].ravel())[0, 1]) < 0.1


def test_blur_and_compression_take_detail_and_keep_the_picture():
    images = pictures((3, 2, 2, 32, 32))
    for chances in ({"blur": 1.0}, {"compression": 1.0}):
        result = corrupted(images, **chances).images.numpy()
        original = as_floats(images)
        assert np.abs(np.diff(result)).mean() < 0.85 * np.abs(np.diff(original)).mean(), chances
        np.testing.assert_allclose(result.mean((-1, -2)), original.mean((-1, -2)), atol=0.02)
    dot = np.zeros((1, 1, 1, 5, 5, 3), np.uint8)
    dot[0, 0, 0, 2, 2] = 255
    spot = corrupted(dot, blur=1.0).images[0, 0, 0, 0]
    assert spot.sum() == pytest.approx(1, abs=1e-5)
    assert spot[1, 2] == pytest.approx(2 * spot[1, 1].item(), rel=1e-4)
    assert 0.25 - 1e-6 <= spot[2, 2] <= 1 - 0.4 * 0.75 + 1e-6


def test_a_patch_hides_the_same_part_in_all_moments():
    images = pictures((6, 4, 2, 20, 20))
    changed = np.abs(corrupted(images, occlusion=1.0).images.numpy() - as_floats(images)).max(3) > 1e-4
    hidden = changed.any(1)  # (E, V, h, w): a pixel may happen to have the patch's colour in one moment, not in four
    for e, v in np.ndindex(6, 2):
        rows, columns = np.flatnonzero(hidden[e, v].any(1)), np.flatnonzero(hidden[e, v].any(0))
        assert 3 <= len(rows) <= 8
        assert 3 <= len(columns) <= 8
        assert hidden[e, v].sum() == len(rows) * len(columns), "not a rectangle"
        assert changed[e, :, v].mean(0)[hidden[e, v]].mean() > 0.9


def test_a_frozen_view_shows_another_moment_and_too_many_make_a_moment_invalid():
    images = pictures((10, 6, 3, 8, 8))
    plain = as_floats(images)
    result = corrupted(images, frozen=0.3)
    same = np.isclose(result.images.numpy()[:, :, None], plain[:, None], atol=1e-6).all((-1, -2, -3))
    # (E, m shown, m original, V): every view shows exactly one moment of its own episode and view
    assert (same.sum(2) == 1).all()
    stale = ~same[:, np.arange(6), np.arange(6)]
    assert 0.2 < stale.mean() < 0.4
    np.testing.assert_array_equal(result.valid, stale.sum(-1) <= 1)
    assert result.shows.all(), "a frozen view cannot be seen to be one"
    assert corrupted(pictures((10, 1, 3, 8, 8)), frozen=1.0).valid.all(), "one moment alone cannot show another"


def test_swapped_views_show_their_moment_under_another_name():
    images = pictures((10, 6, 3, 8, 8))
    result = corrupted(images, swapped=0.5)
    same = np.isclose(result.images.numpy()[:, :, :, None], as_floats(images)[:, :, None], atol=1e-6)
    of = same.all((-1, -2, -3))  # (E, M, v shown, v original)
    assert (of.sum(-1) == 1).all()
    assert (of.sum(-2) == 1).all()
    moved = (of.argmax(-1) != np.arange(3)).sum(-1)
    assert set(np.unique(moved)) == {0, 2}
    assert 0.3 < (moved == 2).mean() < 0.7
    assert result.valid.all()


def test_blind_moments_are_present_and_show_nothing():
    images = pictures((20, 6, 3, 8, 8))
    result = corrupted(images, blind=0.3)
    assert result.present.all()
    blind = ~result.shows.any(-1)
    assert 0.2 < blind.mean() < 0.4
    np.testing.assert_array_equal(result.valid, blind == 0)
    np.testing.assert_array_equal(result.shows.all(-1), blind == 0)
    close = np.abs(result.images.numpy() - as_floats(images)).max((-1, -2, -3))
    assert (close[blind] > 0.2).all()
    np.testing.assert_allclose(close[~blind], 0, atol=1e-6)
    dark = result.images.numpy()[blind].max((-1, -2, -3)) == 0
    assert 0.2 < dark.mean() < 0.8, "black or static"


def test_absent_views():
    images = pictures((40, 6, 3, 4, 4))
    lost = corrupted(images, lost=0.5).present
    np.testing.assert_array_equal(lost, lost[:, :1].repeat(6, 1))
    assert 0.25 < 1 - lost.mean() < 0.45
    dropped = corrupted(images, dropped=1.0)
    np.testing.assert_array_equal(dropped.present.sum(-1), 1)
    assert not dropped.images.any()
    assert not dropped.shows.any()
    assert not dropped.valid.any()
    some = corrupted(images, dropped=0.3)
    assert 0.2 < 1 - some.present.mean() < 0.35
    np.testing.assert_array_equal(some.valid, some.images.numpy().any((2, 3, 4, 5)))


@pytest.mark.parametrize(
    "images", [pictures().astype(np.float32), pictures()[0], pictures((1, 0, 1, 4, 4)), pictures()[..., :2]]
)
def test_other_pictures_are_refused(images):
    with pytest.raises(TraceError, match="expected \\(E, M, V, h, w, 3\\) in uint8"):
        augment(images, NONE, np.random.default_rng(0))


@pytest.mark.parametrize("wrong", [{"blur": 1.5}, {"shift": -1}, {"frozen": 0.6, "static": 0.6}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(TraceError, match="expected"):
        Augmentation(**wrong)


def test_broken_pictures_show_nothing():
    images = torch.from_numpy(as_floats(pictures((2, 3, 2, 20, 30))))
    before = images.clone()
    broken = broken_pictures(images, 200, np.random.default_rng(0))
    assert broken.shape == (200, 3, 20, 30)
    assert broken.dtype == torch.float32
    assert torch.equal(images, before)
    assert torch.equal(broken, broken_pictures(images, 200, np.random.default_rng(0)))
    inner = broken[:, :, 2:-2, 2:-2]  # whatever is shown of a real picture is at most a tenth from the edge
    flat = inner.std((-1, -2)).amax(-1) < 0.03
    noise = (inner.std((-1, -2)).amin(-1) > 0.2) & (inner.std((-1, -2)).amax(-1) < 0.4)
    assert (flat | noise).all()
    assert 0.15 < noise.float().mean() < 0.35
    whole = flat & (broken.std((-1, -2)).amax(-1) < 0.03)
    black = whole & (broken.mean((-1, -2, -3)).abs() < 0.01)
    exact = whole & (broken.std((-1, -2)).amax(-1) == 0)
    assert 0.3 < (exact & black).sum() / black.sum() < 0.7, "half of them are as a sensor without power sends them"
    assert 0.15 < black.float().mean() < 0.35
    assert (whole & ~black).float().mean() > 0.15, "one colour"
    framed = flat & ~whole
    assert framed.float().mean() > 0.1, "a patch before a picture"
    pixels = {tuple(p) for p in (255 * images.flatten(0, 2)[:, :, 0, 0]).round().int().tolist()}
    corners = (255 * broken[framed][:, :, 0, 0]).round().int().tolist()
    near = [min(max(abs(a - b) for a, b in zip(corner, p, strict=True)) for p in pixels) for corner in corners]
    assert max(near) <= 12, "the border is not one of the pictures"


def test_cameras_an_episode_was_not_recorded_with_are_absent_whatever_is_drawn():
    images = pictures((30, 5, 3, 8, 8))
    there = np.random.default_rng(0).random((30, 3)) < 0.5
    there[~there.any(-1), 1] = True
    images[~there.repeat(5, axis=0).reshape(30, 5, 3)] = 0
    chances = {"lost": 0.5, "dropped": 0.3, "black": 0.1, "static": 0.1, "frozen": 0.1, "swapped": 0.5, "blind": 0.2}
    result = augment(images, Augmentation(**chances), np.random.default_rng(1), there=there)
    assert not (result.present & ~there[:, None]).any()
    assert result.present.any(-1).all()
    plain = augment(images, replace(NONE, swapped=1.0), np.random.default_rng(1), there=there)
    np.testing.assert_array_equal(plain.present, there[:, None].repeat(5, 1))
    assert plain.images[torch.from_numpy(plain.present)].flatten(1).any(-1).all(), (
        "exchanged with one that is not there"
    )
    everything = augment(images, Augmentation(**chances), np.random.default_rng(1))
    all_there = augment(images, Augmentation(**chances), np.random.default_rng(1), there=np.ones((30, 3), bool))
    assert torch.equal(everything.images, all_there.images)
    for wrong in (np.zeros((30, 3), bool), np.ones((30, 2), bool)):
        with pytest.raises(TraceError, match="at least one view of every episode"):
            augment(images, NONE, np.random.default_rng(1), there=wrong)
