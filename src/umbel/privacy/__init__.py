"""Differential privacy: mechanisms that hide one client, or one example, and the account of what each release costs."""

from .central import central_gaussian
from .ftrl import dp_ftrl

__all__ = ["central_gaussian", "dp_ftrl"]
