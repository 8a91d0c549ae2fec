import io

import numpy as np
import pytest
from PIL import Image

from grm.data.video import encode_jpeg
from grm.errors import TraceError


def picture():
    image = np.zeros((16, 24, 3), np.uint8)
    image[:, :12] = (200, 30, 10)
    image[:, 12:] = (10, 30, 200)
    return image


def test_the_file_shows_the_image_in_rgb():
    file = encode_jpeg(picture(), quality=95)
    decoded = np.asarray(Image.open(io.BytesIO(file)).convert("RGB")).astype(int)
    assert file[:2] == b"\xff\xd8"
    assert decoded.shape == (16, 24, 3)
    assert np.abs(decoded[4:12, 2:8] - (200, 30, 10)).max() < 12, "red and blue are swapped"
    assert np.abs(decoded[4:12, 16:22] - (10, 30, 200)).max() < 12


def test_higher_quality_is_larger_and_closer():
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    files = [encode_jpeg(noise, quality) for quality in (1, 50, 100)]
    errors = [np.abs(np.asarray(Image.open(io.BytesIO(f))).astype(int) - noise).mean() for f in files]
    assert sorted(map(len, files)) == [*map(len, files)]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize(
    "image",
    [picture().astype(float), picture()[..., 0], picture()[..., :2], picture()[:0], picture().transpose(2, 0, 1)],
)
def test_what_is_no_rgb_image_is_refused(image):
    with pytest.raises(TraceError, match=r"shape .* and dtype .*; expected \(h, w, 3\)"):
        encode_jpeg(image)


@pytest.mark.parametrize("quality", [0, 101, -5])
def test_quality_out_of_range(quality):
    with pytest.raises(TraceError, match=f"quality is {quality}"):
        encode_jpeg(picture(), quality)


def test_what_jpeg_cannot_hold_is_refused():
    with pytest.raises(TraceError, match="65536"):
        encode_jpeg(np.zeros((1, 70_000, 3), np.uint8))
