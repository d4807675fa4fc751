"""The brier module for Hugging Face evaluate."""
