"""`python -m grm` is `grm`."""

from .cli import main

main()
