"""`grm doctor`: what this machine lacks."""

import sys
from dataclasses import dataclass

from .terminal import console


@dataclass(frozen=True)
class Doctor:
    """Check this machine: versions, devices, renderer, write access, and what to do about each thing missing."""

    def run(self) -> None:
        """Print the findings; exit status 1 if one of them is a failure."""
        from ..doctor import Status, diagnose, render

        findings = diagnose()
        console.print(render(findings))
        if any(finding.status is Status.FAIL for finding in findings):
            sys.exit(1)
