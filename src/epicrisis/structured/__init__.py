"""Models of codes: events as sequences of tokens, and what learns from them."""
