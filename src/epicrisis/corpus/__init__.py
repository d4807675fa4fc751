"""Narratives become token ids, and token ids become batches."""
