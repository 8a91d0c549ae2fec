"""`grm text <verb>`: the same reward interface for reasoning steps."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from .annotate import TextAnnotate
from .score import TextScore
from .search import TextSearch
from .train import TextTrain

__all__ = ["Text", "TextAnnotate", "TextScore", "TextSearch", "TextTrain"]


@dataclass(frozen=True)
class Text:
    """Reasoning steps: score solutions, train and label for judges, search with them."""

    verb: (
        Annotated[TextScore, tyro.conf.subcommand("score")]
        | Annotated[TextTrain, tyro.conf.subcommand("train")]
        | Annotated[TextAnnotate, tyro.conf.subcommand("annotate")]
        | Annotated[TextSearch, tyro.conf.subcommand("search")]
    )

    def run(self) -> None:
        """Run the verb."""
        self.verb.run()
