"""Tasks that know the truth."""
