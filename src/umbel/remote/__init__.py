"""Servers of a deployment, as those who use them from elsewhere see them."""
