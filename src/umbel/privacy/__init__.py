"""Differential privacy: mechanisms that hide one client, or one example, and the account of what each release costs."""
