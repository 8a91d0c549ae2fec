"""How far along is this? One interface for process rewards: robot frames and reasoning steps alike."""
