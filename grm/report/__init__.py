"""What a person looks at: one self-contained HTML page for a run."""

from .page import Clip, Curve, RunPage, write_page

__all__ = ["Clip", "Curve", "RunPage", "write_page"]
