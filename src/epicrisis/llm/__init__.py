"""Causal language models over narratives: bases, adapters, continued pretraining, classification."""
