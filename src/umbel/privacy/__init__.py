"""Differential privacy: mechanisms that hide one client, or one example, and the account of what each release costs."""

from .central import central_gaussian
from .local import local_gaussian, local_laplace
from .privunit import privunit

__all__ = ["central_gaussian", "local_gaussian", "local_laplace", "privunit"]
