"""`grm text <verb>`: the same reward interface for reasoning steps."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from ...errors import GrmError
from .annotate import TextAnnotate
from .bench import TextBench
from .score import TextScore
from .search import TextSearch
from .train import TextTrain

__all__ = ["Text", "TextAnnotate", "TextBench", "TextScore", "TextSearch", "TextTrain"]


@dataclass(frozen=True)
class Text:
    """Reasoning steps: score solutions, train and label for judges, search with them, measure them."""

    verb: (
        Annotated[TextScore, tyro.conf.subcommand("score")]
        | Annotated[TextTrain, tyro.conf.subcommand("train")]
        | Annotated[TextAnnotate, tyro.conf.subcommand("annotate")]
        | Annotated[TextSearch, tyro.conf.subcommand("search")]
        | Annotated[TextBench, tyro.conf.subcommand("bench")]
    )

    def run(self) -> None:
        """Run the verb; an endpoint that gave up half-way costs nothing that was paid for, and the error says so."""
        try:
            self.verb.run()
        except GrmError as error:
            if not isinstance(error, ConnectionError) or not self.verb.out.exists():
                raise
            raise type(error)(f"{error} (what was answered is kept: --resume goes on)") from error
