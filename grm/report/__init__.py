"""What a person looks at: one self-contained HTML page for a run."""

from .page import Clip, Curve, Event, Film, RunPage, write_page

__all__ = ["Clip", "Curve", "Event", "Film", "RunPage", "write_page"]
