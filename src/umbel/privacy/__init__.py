"""Differential privacy: mechanisms that hide one client, or one example, and the account of what each release costs."""

from .central import central_gaussian
from .counts import central_counts
from .example import ExamplePrivacy, example_privacy_spent
from .ftrl import dp_ftrl
from .local import local_gaussian, local_laplace
from .metrics import central_metrics
from .noised_sum import noised_sum
from .privunit import privunit
from .randomised_response import randomised_response
from .secure import secure
from .secure_sum import secure_sum

__all__ = [
    "ExamplePrivacy", "central_counts", "central_gaussian", "central_metrics", "dp_ftrl", "example_privacy_spent",
    "local_gaussian", "local_laplace", "noised_sum", "privunit", "randomised_response", "secure", "secure_sum",
]  # fmt: skip
