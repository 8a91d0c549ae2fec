"""One script per table of the README."""
