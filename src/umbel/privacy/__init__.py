"""Differential privacy: mechanisms that hide one client, or one example, and the account of what each release costs."""

from .central import central_gaussian

__all__ = ["central_gaussian"]
