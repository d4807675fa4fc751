"""Searches for hyper-parameters: W&B's sweep files, and the same search without a server."""
