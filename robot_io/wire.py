"""What goes over the wire: tasks, frames and judgements as JSON, pictures inside as base64."""

import io
from dataclasses import fields
from typing import Annotated, Literal

import numpy as np
from PIL import Image, UnidentifiedImageError
from pydantic import Base64Bytes, BaseModel, ConfigDict, Field, StringConstraints

from grm.errors import TraceError
from grm.reward import Frame, Judgement, Task

Name = Annotated[str, StringConstraints(min_length=1, max_length=100)]


class Message(BaseModel):
    """Unknown fields are refused: a misspelt one would be ignored otherwise."""

    model_config = ConfigDict(extra="forbid")


class Picture(Message):
    """One camera's picture, RGB: a JPEG or PNG file, or its bare bytes (height, width, 3)."""

    format: Literal["jpeg", "png", "raw"]
    data: Base64Bytes
    height: Annotated[int, Field(gt=0, strict=True)] | None = None
    """In pixels; of bare bytes only."""
    width: Annotated[int, Field(gt=0, strict=True)] | None = None

    def pixels(self, name: str, limit: int) -> np.ndarray:
        """(height, width, 3) in uint8. Raises `TraceError` if it is none, or has more than `limit` pixels."""
        if self.format == "raw":
            if self.height is None or self.width is None or len(self.data) != self.height * self.width * 3:
                raise TraceError(
                    f"view {name!r} is {len(self.data)} raw bytes of height {self.height} and width {self.width}; "
                    f"expected height * width * 3 bytes"
                )
            if self.height * self.width > limit:
                raise _too_large(name, self.height, self.width, limit)
            return np.frombuffer(self.data, np.uint8).reshape(self.height, self.width, 3)
        try:
            with Image.open(io.BytesIO(self.data), formats=[self.format]) as image:
                if image.width * image.height > limit:  # known before anything is decoded
                    raise _too_large(name, image.height, image.width, limit)
                return np.array(image.convert("RGB"))
        except TraceError:
            raise
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise TraceError(
                f"view {name!r} ({len(self.data)} bytes) is no {self.format} picture ({error}); expected a whole file"
            ) from error


class Moment(Message):
    """One frame: what each camera saw, and when."""

    views: dict[Name, Picture]
    """By the camera's name; empty if no camera delivered."""
    time: Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)] = 0.0
    """Seconds since the episode began."""

    def frame(self, limit: int) -> Frame:
        """Raises `TraceError` on a picture that is none, or has more than `limit` pixels."""
        return Frame(views={name: view.pixels(name, limit) for name, view in self.views.items()}, time=self.time)


class Assignment(Message):
    """What is to be done, and how that looks once it is."""

    instruction: Annotated[str, StringConstraints(min_length=1, max_length=2000)]
    goal: Moment | None = None

    def task(self, limit: int) -> Task:
        """Raises `TraceError` as `Moment.frame` does, and on an instruction of blanks."""
        return Task(instruction=self.instruction, goal=None if self.goal is None else self.goal.frame(limit))


class Opening(Message):
    """Begins a stream."""

    task: Assignment


class Opened(Message):
    """A stream that has begun."""

    stream: str
    """Its name, for as long as it is used at least every `idle_s` seconds."""
    idle_s: float


class Step(Message):
    """The next frames of a stream."""

    index: Annotated[int, Field(ge=0, strict=True)]
    """How many frames the stream has been sent before these: a frame that got lost or came twice is noticed. The same
    step sent again, because its answer never came, is answered again and judged once."""
    frames: Annotated[list[Moment], Field(min_length=1)]


class Batch(Message):
    """Whole episodes of one task, to be judged at once."""

    task: Assignment
    episodes: Annotated[list[list[Moment]], Field(min_length=1)]


Numbers = list[float | None]


class Scores(Message):
    """A number per frame; null where the model abstained, and for what it has no head for."""

    judged: list[bool]
    potential: Numbers
    spread: Numbers
    incremental: Numbers | None = None
    forward: Numbers | None = None
    backward: Numbers | None = None
    absolute: Numbers | None = None
    success: Numbers | None = None

    @classmethod
    def of(cls, judgement: Judgement) -> "Scores":
        """All that the judgement says and a robot's reward has."""
        columns = {f.name: getattr(judgement, f.name) for f in fields(judgement) if f.name in cls.model_fields}
        judged = columns.pop("judged").tolist()
        numbers = {
            name: [float(x) if np.isfinite(x) else None for x in values.tolist()] for name, values in columns.items()
        }
        return cls(judged=judged, **numbers)


class Scored(Message):
    """What came out, episode by episode."""

    episodes: list[Scores]


class Health(Message):
    """The server can judge."""

    status: Literal["ok"]
    model: str
    streams: int


class Problem(BaseModel):
    """Why a request was refused: what was found, what was expected, what would work."""

    detail: str


def _too_large(name: str, height: int, width: int, limit: int) -> TraceError:
    return TraceError(
        f"view {name!r} is {height} x {width} pixels; expected at most {limit:,} in all: send it smaller, the model "
        f"does not see more"
    )
