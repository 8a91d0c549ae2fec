"""The real world: robots, sessions, recorders (built by the real-robot issue; empty until then)."""
