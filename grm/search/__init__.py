"""Search with process rewards: best-of-N, votes and beams, for any kind of step."""
