"""The door to OpenCV: images into bytes and back."""

from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from ..errors import TraceError


def encode_jpeg(image: UInt8[np.ndarray, "h w 3"], quality: int = 85) -> bytes:
    """JPEG file of an RGB image in [0, 255]; `quality` in [1, 100], higher is larger and closer to the image.

    Raises `TraceError` if the image is not an (h, w, 3) array of unsigned bytes, or the quality is out of range.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise TraceError(
            f"image of shape {image.shape} and dtype {image.dtype}; expected (h, w, 3) RGB in uint8 to encode as JPEG"
        )
    if not 1 <= quality <= 100:
        raise TraceError(f"JPEG quality is {quality}; expected 1 (smallest) to 100 (closest)")
    # Optimised Huffman tables save some 400 bytes a file: half of a small one.
    settings = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
    encoded, buffer = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), settings)
    if not encoded:
        raise TraceError(f"OpenCV could not encode an image of shape {image.shape} as JPEG; both sides must be < 65536")
    return buffer.tobytes()


def decode_jpeg(data: UInt8[np.ndarray, " n"]) -> UInt8[np.ndarray, "h w 3"]:
    """RGB image of the bytes of a JPEG file, or a PNG. Raises `TraceError` if they are none."""
    image = cv2.imdecode(data, cv2.IMREAD_COLOR) if len(data) else None
    if image is None:
        raise TraceError(f"{len(data)} bytes are not a JPEG image; expected a whole file")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_picture(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """RGB image of a picture file. Raises `TraceError` if it is none, or cannot be read."""
    try:
        data = np.fromfile(path, np.uint8)  # and not cv2.imread, which knows no names beyond ASCII everywhere
    except OSError as error:
        raise TraceError(f"picture {path} cannot be read ({error}); expected a PNG or JPEG file") from error
    image = cv2.imdecode(data, cv2.IMREAD_COLOR) if len(data) else None
    if image is None:
        raise TraceError(f"{path} ({len(data)} bytes) is no picture; expected a whole PNG or JPEG file")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def resize(image: UInt8[np.ndarray, "h w 3"], height: int) -> UInt8[np.ndarray, "height w2 3"]:
    """The image at another height in pixels and the same aspect; never larger than it is."""
    if image.shape[0] <= height:
        return image
    width = max(1, round(image.shape[1] * height / image.shape[0]))
    # Averaging areas costs four times as much, and shows no difference before every other pixel is left out.
    area = image.shape[0] >= 2 * height
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if area else cv2.INTER_LINEAR)


def thumbnail(image: UInt8[np.ndarray, "h w 3"], side: int) -> UInt8[np.ndarray, "side side"]:
    """The image in grey, `side` pixels high and wide."""
    return cv2.cvtColor(cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
