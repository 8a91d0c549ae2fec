"""Potentials into rewards: policy-invariant shaping around any environment."""
