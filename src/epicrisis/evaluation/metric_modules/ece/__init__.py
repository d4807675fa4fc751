"""The ece module for Hugging Face evaluate."""
