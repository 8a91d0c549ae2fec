"""Episodes: how robot traces are stored, read, decoded and sampled."""
