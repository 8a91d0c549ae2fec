"""Models, one per file; each is a `ProcessReward`, or says why it is only a `Judge`."""
