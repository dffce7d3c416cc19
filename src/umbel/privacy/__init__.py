"""Differential privacy: mechanisms that hide one client, or one example, and the account of what each release costs."""

from .central import central_gaussian
from .example import ExamplePrivacy, example_privacy_spent

__all__ = ["ExamplePrivacy", "central_gaussian", "example_privacy_spent"]
