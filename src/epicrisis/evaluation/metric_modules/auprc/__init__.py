"""The auprc module for Hugging Face evaluate."""
