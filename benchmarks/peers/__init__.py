"""Umbel beside its peers: the same models, data, cohorts and seeds on a plain loop, Umbel, flwr and pfl.

`python -m benchmarks.peers` starts each side in an environment of its own, by turns, and prints ratios; `make
bench-peers` makes the environments first.
"""
