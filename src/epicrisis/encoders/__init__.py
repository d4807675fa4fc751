"""Text encoders: classifiers over narratives, linear heads on frozen embeddings, transformers over embedded events."""
