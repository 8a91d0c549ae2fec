"""The composition root: `grm <verb>`. The one package that may import everything, and that nothing imports.

One file per verb. Heavy imports sit inside the commands, so that `grm --help` is quick and one command's dependency is
not another's.
"""

import sys
from collections.abc import Sequence
from typing import Annotated

import tyro
from rich.markup import escape

from .._layout import check_layout
from ..errors import GrmError
from .adapt import Adapt
from .audit import Audit
from .collect import Collect
from .demo import Demo
from .doctor import Doctor
from .evaluate import Evaluate
from .inspect import Inspect
from .rl import Rl
from .serve import Serve
from .session import Session
from .teach import Teach
from .terminal import complaints, console
from .text import Text
from .train import Train

__all__ = [
    "Adapt",
    "Audit",
    "Collect",
    "Command",
    "Demo",
    "Doctor",
    "Evaluate",
    "Inspect",
    "Rl",
    "Serve",
    "Session",
    "Teach",
    "Text",
    "Train",
    "main",
]

Command = (
    Annotated[Collect, tyro.conf.subcommand("collect")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Adapt, tyro.conf.subcommand("adapt")]
    | Annotated[Teach, tyro.conf.subcommand("teach")]
    | Annotated[Audit, tyro.conf.subcommand("audit")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Inspect, tyro.conf.subcommand("inspect")]
    | Annotated[Text, tyro.conf.subcommand("text")]
    | Annotated[Serve, tyro.conf.subcommand("serve")]
    | Annotated[Rl, tyro.conf.subcommand("rl")]
    | Annotated[Session, tyro.conf.subcommand("session")]
    | Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Doctor, tyro.conf.subcommand("doctor")]
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `grm` console script."""
    command = tyro.cli(
        tyro.conf.OmitSubcommandPrefixes[Command],
        args=arguments,
        prog="grm",
        description="General Reward Models for robots.",
    )
    try:
        check_layout()
        command.run()
    except GrmError as error:
        # Escaped, because a message may hold brackets; on one line, because it may hold a path.
        complaints.print(f"[bold red]error:[/bold red] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        console.print("interrupted; what is finished is on disk: run the same command again to go on")
        sys.exit(130)
