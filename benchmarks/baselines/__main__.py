"""`python -m benchmarks.baselines`. The work is in `run`: processes of a pool cannot find what a `__main__` defines."""

from .run import main

main()
