"""What cameras do to pictures, drawn anew for every training step: lenses, sensors, codecs, dirt and bad cables.

What a camera is (its pose, colours, noise, blur, compression, dirt) is drawn once per episode and view; what goes
wrong (a view that is missing, black, static, frozen or plugged into the wrong socket) once per moment.
"""

from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from ..errors import TraceError
from .video import decode_jpeg, encode_jpeg


@dataclass(frozen=True)
class Augmentation:
    """How strong, and how often. Zero turns a corruption off; `Augmentation.none()` has all of them off."""

    shift: int = 3
    """Largest shift in pixels, either way; edges are repeated. Kostrikov et al. 2020 (DrQ), once per episode."""
    zoom: float = 0.15
    """Nearer or farther by up to this share."""
    turn: float = 0.02
    """Turned about the middle by up to ± this share of a turn."""
    gain: float = 0.15
    """Each colour channel times 1 ± this."""
    bias: float = 0.06
    """All channels plus up to ± this, of 1."""
    contrast: float = 0.2
    """Distance from the view's mean colour times 1 ± this."""
    hue: float = 0.04
    """Rotation about the grey axis by up to ± this share of a turn."""
    noise: float = 0.3
    """Chance that a camera is noisy: Gaussian, of standard deviation up to `noise_scale`, fresh in every picture."""
    noise_scale: float = 0.06
    blur: float = 0.1
    """Chance that a camera is out of focus, by about a pixel."""
    compression: float = 0.1
    """Chance that a camera sends JPEG of quality 10 to 60."""
    occlusion: float = 0.1
    """Chance that a patch hides a part of a camera's view, of 0.15 to 0.4 of each side, in one colour."""
    lost: float = 0.15
    """Chance that a camera is absent the whole episode; at least one stays."""
    dropped: float = 0.03
    """Chance that a picture is missing, known to be so: not `present`."""
    black: float = 0.01
    """Chance that a picture is black; like all that follow, it says it is present."""
    static: float = 0.01
    """Chance that a picture is random bytes."""
    frozen: float = 0.02
    """Chance that a picture is another moment's."""
    swapped: float = 0.02
    """Chance that a moment has two views exchanged."""
    blind: float = 0.02
    """Chance that a moment's views are black or static all at once."""

    def __post_init__(self) -> None:
        """Raises `TraceError` for numbers out of range."""
        wrong = [f.name for f in fields(self) if not 0 <= getattr(self, f.name) <= (1 if f.name != "shift" else np.inf)]
        if wrong:
            raise TraceError(f"augmentation has {wrong[0]} = {getattr(self, wrong[0])}; expected 0 to 1 (shift: 0 up)")
        if self.dropped + self.black + self.static + self.frozen > 1:
            raise TraceError("dropped, black, static and frozen exclude each other; expected a sum of at most 1")

    @classmethod
    def none(cls) -> "Augmentation":
        """Pictures as they are."""
        return cls(**{f.name: 0 for f in fields(cls)})


@dataclass(frozen=True, slots=True, eq=False)
class Augmented:
    """Corrupted pictures of E episodes, M moments, V views, and what is left of them."""

    images: Float[Tensor, "e m v 3 h w"]
    """In [0, 1]; black where not present."""
    present: Bool[np.ndarray, "e m v"]
    """What the model is told it has; at least one view of every moment."""
    valid: Bool[np.ndarray, "e m"]
    """Whether more views show this moment than show another one: else no label holds for it."""
    shows: Bool[np.ndarray, "e m v"]
    """Which present views show anything, of this moment or another: those that are neither black nor static. A moment
    of which none does is one that a model can see to be blind, and should abstain on; it is not `valid`."""


def augment(
    images: UInt8[np.ndarray, "e m v h w 3"],
    settings: Augmentation,
    generator: np.random.Generator,
    *,
    there: Bool[np.ndarray, "e v"] | None = None,
) -> Augmented:
    """Draw a camera for every episode and view, and faults for every moment.

    `there` says which cameras an episode was recorded with; all unless given. What `images` has for the others does not
    matter. Raises `TraceError` unless `images` are unsigned bytes of that shape, with at least one view and moment.
    """
    if images.dtype != np.uint8 or images.ndim != 6 or images.shape[-1] != 3 or 0 in images.shape:
        raise TraceError(f"images of shape {images.shape} and {images.dtype}; expected (E, M, V, h, w, 3) in uint8")
    if there is None:
        there = np.ones((images.shape[0], images.shape[2]), bool)
    if there.shape != (images.shape[0], images.shape[2]) or not there.any(-1).all():
        raise TraceError(f"`there` says {there.tolist()}; expected (E, V), with at least one view of every episode")
    result = _colour(_compress(_shift(images, settings, generator), settings, generator), settings, generator)
    if settings.zoom or settings.turn:
        _nudge(result, settings, generator)
    _blur(result, settings, generator)
    _add_noise(result, settings, generator)
    _occlude(result, settings, generator)
    result.clamp_(0, 1)
    return _break(result, settings, generator, there)


def _shift(images: np.ndarray, settings: Augmentation, generator: np.random.Generator) -> np.ndarray:
    """A copy, shifted by whole pixels alike in all moments of an episode and view."""
    height, width = images.shape[3:5]
    limit = np.minimum(settings.shift, (height - 1, width - 1))
    shifts = generator.integers(-limit, limit + 1, size=(images.shape[0], images.shape[2], 2))
    result = np.empty_like(images)
    for (e, v), (y, x) in zip(np.ndindex(shifts.shape[:2]), shifts.reshape(-1, 2).tolist(), strict=True):
        out = result[e, :, v]
        top, bottom, left, right = max(0, -y), height - max(0, y), max(0, -x), width - max(0, x)
        out[:, top:bottom, left:right] = images[e, :, v, top + y : bottom + y, left + x : right + x]
        out[:, top:bottom, :left] = out[:, top:bottom, left : left + 1]
        out[:, top:bottom, right:] = out[:, top:bottom, right - 1 : right]
        out[:, :top] = out[:, top : top + 1]
        out[:, bottom:] = out[:, bottom - 1 : bottom]
    return result


def _chosen(chance: float, images: Tensor | np.ndarray, generator: np.random.Generator) -> list[tuple[int, int]]:
    """Episodes and views that get something."""
    drawn = generator.random((images.shape[0], images.shape[2])) < chance
    return [(int(e), int(v)) for e, v in zip(*np.nonzero(drawn), strict=True)]


def _compress(images: np.ndarray, settings: Augmentation, generator: np.random.Generator) -> np.ndarray:
    for e, v in _chosen(settings.compression, images, generator):
        quality = int(generator.integers(10, 61))
        for image in images[e, :, v]:
            image[:] = decode_jpeg(np.frombuffer(encode_jpeg(image, quality), np.uint8))
    return images


def _colour(images: np.ndarray, settings: Augmentation, generator: np.random.Generator) -> Tensor:
    """Hue, contrast, gain and bias in one affine map of colours, which also puts the channels first."""
    count, moments, views, height, width, _ = images.shape
    size = count, views

    def symmetric(limit: float, *shape: int) -> np.ndarray:
        return generator.uniform(-limit, limit, (*size, *shape))

    rotation = _hue_rotation(2 * np.pi * symmetric(settings.hue))
    contrast, gain = 1 + symmetric(settings.contrast, 1, 1), 1 + symmetric(settings.gain, 3, 1)
    mean = images[:, :, :, ::8, ::8].mean((1, 3, 4)) / 255  # (E, V, 3)
    bias = gain * (1 - contrast) * (rotation @ mean[..., None]) + symmetric(settings.bias, 1, 1)
    linear = gain * contrast * rotation / 255

    result = torch.empty((count, moments, views, 3, height * width))
    linear_t, bias_t = (torch.from_numpy(value.astype(np.float32)) for value in (linear, bias))
    for e in range(count):  # one at a time: what stays in the cache takes half as long
        pixels = torch.from_numpy(images[e]).view(moments * views, height * width, 3).float().transpose(1, 2)
        bias_e, linear_e = bias_t[e].repeat(moments, 1, 1), linear_t[e].repeat(moments, 1, 1)
        torch.baddbmm(bias_e, linear_e, pixels, out=result[e].view(pixels.shape))
    return result.view(count, moments, views, 3, height, width)


def _nudge(images: Tensor, settings: Augmentation, generator: np.random.Generator) -> None:
    """Every camera nearer or farther and turned about the middle, alike in all moments; edges are repeated."""
    count, moments, views, channels, height, width = images.shape
    size = count, views
    nearer = (1 + settings.zoom) ** generator.uniform(-1, 1, size)
    angle = 2 * np.pi * generator.uniform(-settings.turn, settings.turn, size)
    cos, sin, aspect = np.cos(angle) / nearer, np.sin(angle) / nearer, width / height
    still = np.zeros(size)  # `_shift` has moved it
    x, y = np.stack([cos, -sin / aspect, still], -1), np.stack([sin * aspect, cos, still], -1)
    lenses = torch.from_numpy(np.stack([x, y], -2).astype(np.float32))  # (E, V, 2, 3), in units of half a side
    for e, v in np.ndindex(size):
        film = images[e, :, v].reshape(1, -1, height, width)
        grid = F.affine_grid(lenses[e, v][None], [*film.shape], align_corners=False)
        seen = F.grid_sample(film, grid, padding_mode="border", align_corners=False)
        images[e, :, v] = seen.view(moments, channels, height, width)


def _hue_rotation(angle: np.ndarray) -> np.ndarray:
    """Rotations (…, 3, 3) about the grey axis (Rodrigues' formula): greys stay what they are."""
    cos, sin = np.cos(angle)[..., None, None], np.sin(angle)[..., None, None] / np.sqrt(3)
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    return cos * np.eye(3) + (1 - cos) / 3 + sin * cross


def _blur(images: Tensor, settings: Augmentation, generator: np.random.Generator) -> None:
    """A separable binomial filter, blended in."""
    for e, v in _chosen(settings.blur, images, generator):
        sharp = images[e, :, v]
        soft = F.pad(sharp, (1, 1, 1, 1), mode="replicate")
        soft = 0.5 * soft[..., 1:-1, :] + 0.25 * (soft[..., 2:, :] + soft[..., :-2, :])
        soft = 0.5 * soft[..., 1:-1] + 0.25 * (soft[..., 2:] + soft[..., :-2])
        images[e, :, v] = sharp.lerp(soft, float(generator.uniform(0.4, 1)))


def _add_noise(images: Tensor, settings: Augmentation, generator: np.random.Generator) -> None:
    """Every picture gets its own window of one drawn noise: a draw per pixel would cost more than all the rest."""
    chosen = _chosen(settings.noise, images, generator)
    if not chosen:
        return
    pixels, choices = images[0, 0, 0].numel(), 8192
    noise = torch.from_numpy(generator.standard_normal(pixels + choices - 1, dtype=np.float32))
    windows = noise.unfold(0, pixels, 1)
    for e, v in chosen:
        scale = float(generator.uniform(0, settings.noise_scale))
        starts = torch.from_numpy(generator.integers(choices, size=images.shape[1]))
        images[e, :, v].add_(windows[starts].view(images[e, :, v].shape), alpha=scale)


def _occlude(images: Tensor, settings: Augmentation, generator: np.random.Generator) -> None:
    height, width = images.shape[-2:]
    for e, v in _chosen(settings.occlusion, images, generator):
        h, w = np.ceil(generator.uniform(0.15, 0.4, 2) * (height, width)).astype(int)
        y, x = generator.integers(height - h + 1), generator.integers(width - w + 1)
        colour = torch.from_numpy(generator.random((3, 1, 1), dtype=np.float32))
        images[e, :, v, :, y : y + h, x : x + w] = colour


def _break(images: Tensor, settings: Augmentation, generator: np.random.Generator, there: np.ndarray) -> Augmented:
    count, moments, views = images.shape[:3]
    limits = np.cumsum([settings.dropped, settings.black, settings.static, settings.frozen])
    if moments == 1:
        limits[3] = limits[2]  # there is no other moment to show
    fault = np.searchsorted(limits, generator.random((count, moments, views)), side="right")
    dropped, black, static, frozen = (fault == code for code in range(4))

    blinded = generator.random((count, moments)) < settings.blind
    dark = generator.random((count, moments, views)) < 0.5
    black, static = np.where(blinded[..., None], dark, black), np.where(blinded[..., None], ~dark, static)
    dropped, frozen = dropped & ~blinded[..., None], frozen & ~blinded[..., None]

    lost = (generator.random((count, views)) < settings.lost) | ~there
    for e, kept in enumerate(generator.integers(views, size=count)):
        mine = np.flatnonzero(there[e])
        lost[e, mine[kept % len(mine)]] = False
    present = ~dropped & ~lost[:, None]
    nothing = ~present.any(-1)
    stays = (nothing[..., None] & ~lost[:, None]) & (np.cumsum(~lost, -1) == 1)[:, None]
    present, black = present | stays, black | stays  # no picture at all: then the model is shown a black one

    e, m, v = np.nonzero(frozen & present)
    frozen_at = torch.from_numpy(e), torch.from_numpy(m), torch.from_numpy(v)
    other = (m + generator.integers(1, max(2, moments), size=len(m))) % moments
    shown = images[frozen_at[0], torch.from_numpy(other), frozen_at[2]]
    for e, m in zip(*np.nonzero(generator.random((count, moments)) < settings.swapped), strict=True):
        if there[e].sum() > 1:
            a, b = generator.choice(np.flatnonzero(there[e]), 2, replace=False).tolist()
            images[e, m, [a, b]] = images[e, m, [b, a]]
    images[frozen_at] = shown
    images[torch.from_numpy(static)] = torch.from_numpy(
        generator.random((int(static.sum()), *images.shape[3:]), dtype=np.float32)
    )
    images[torch.from_numpy(black | ~present)] = 0

    shows = present & ~black & ~static
    honest, lying = (shows & ~frozen).sum(-1), (shows & frozen).sum(-1)
    return Augmented(images=images, present=present, valid=honest > lying, shows=shows)


def broken_pictures(
    images: Float[Tensor, "e m v 3 h w"], count: int, generator: np.random.Generator
) -> Float[Tensor, "count 3 h w"]:
    """What a camera sends that shows nothing: one colour, noise, or a real picture all but hidden behind a patch."""
    flat = images.flatten(0, 2)
    *_, height, width = flat.shape
    broken = torch.empty((count, 3, height, width))
    for index in range(count):
        kind = generator.integers(4)
        colour = torch.from_numpy(generator.random((3, 1, 1), np.float32)) * float(kind > 0)
        if kind < 2:  # black, or one colour
            broken[index] = colour
        elif kind == 2:
            broken[index] = torch.from_numpy(generator.random((3, height, width), np.float32))
        else:
            broken[index] = flat[int(generator.integers(len(flat)))]
            edge = int(generator.integers(max(1, height // 10) + 1))
            broken[index, :, edge : height - edge, edge : width - edge] = colour
    noise = torch.from_numpy(generator.normal(0, 0.01, broken.shape).astype(np.float32))
    exact = torch.from_numpy(generator.random((count, 1, 1, 1)) < 0.5)  # a sensor without power has no noise either
    return torch.where(exact, broken, broken + noise)
