"""`grm serve`: the reward over HTTP."""

from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape

from ..errors import MissingExtraError, OutputError
from .terminal import console


@dataclass(frozen=True)
class Serve:
    """Serve the reward to robots and clusters whose own process should not import torch (`grm.client`).

    Judges whole episodes and streams, over HTTP; what it takes is described at /docs. Stops at Ctrl-C or SIGTERM, after
    it has answered what was asked.
    """

    model: str = ""
    """Checkpoint: a folder, a Hub id, or nothing for the packaged one."""
    host: str = "127.0.0.1"
    """Address to listen at; any but this machine's own demands a token."""
    port: int = 8750
    token_file: Path | None = None
    """File that holds the token which clients must present."""
    max_streams: int = 256
    """Open at once."""
    max_mib: int = 32
    """Size of one request."""
    max_per_second: float = 500.0
    """Requests of one client."""
    idle_s: float = 300.0
    """Seconds after which a stream that is not used is closed."""
    threads: int = 0
    """CPU threads of the model; 0 for as many as torch takes."""

    def run(self) -> None:
        """Serve until told to stop."""
        try:
            import uvicorn

            from robot_io.server import Limits, check_address, make_app
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                f"grm serve needs {error.name}; install it with `pip install 'grm-robotics[serve]'`"
            ) from error
        import torch

        from ..models.multiview import GRM

        token = None if self.token_file is None else read_token(self.token_file)
        check_address(self.host, token)
        if self.threads:
            torch.set_num_threads(self.threads)
        limits = Limits(
            body_bytes=self.max_mib * 2**20,
            streams=self.max_streams,
            idle_s=self.idle_s,
            per_second=self.max_per_second,
        )
        app = make_app(GRM.from_pretrained(self.model), name=self.model or "packaged", token=token, limits=limits)
        console.print(
            f"serving [bold]{escape(self.model or 'the packaged model')}[/bold] at http://{self.host}:{self.port} "
            f"(try /docs, /health, /metrics)",
            highlight=False,
            soft_wrap=True,
        )
        uvicorn.run(app, host=self.host, port=self.port, log_level="warning", timeout_graceful_shutdown=30)


def read_token(path: Path) -> str:
    """The token in a file. Raises `OutputError` if there is none, or a short one."""
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise OutputError(f"token file {path} cannot be read ({error}); expected one line of ASCII") from error
    if len(token) < 16:
        raise OutputError(
            f"the token in {path} has {len(token)} characters; expected at least 16: make one with "
            f"`openssl rand -hex 32 > {path}`"
        )
    return token
