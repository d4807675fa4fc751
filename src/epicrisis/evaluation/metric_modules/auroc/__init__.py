"""The auroc module for Hugging Face evaluate."""
