"""Process rewards for chains of thought: every model here is a `ProcessReward` or `Judge` of `Thought`s."""
