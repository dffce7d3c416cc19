"""The sides that are measured, each in a process of its own and the peers in environments of their own: the same
models, data, cohorts and seeds on a plain loop, Umbel, flwr and pfl.
"""
