"""The long-running server of a deployment."""
