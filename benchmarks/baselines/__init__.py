"""Ideas side by side: the same frozen encoder, the same episodes, the same number of steps, heads of the same width.

`features` encodes every data set once with the encoder of one trained checkpoint; `clips` draws the same batches for
everyone; one small file per idea trains a head on them; `compare` adapts each to one demonstration of every held-out
task and measures it. `python -m benchmarks.baselines` writes the table.
"""
