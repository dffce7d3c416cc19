"""Contracts and machinery, pure: numpy and the standard library, no clock, no global generator, no input or output."""
