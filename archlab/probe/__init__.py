"""What is measured inside a model while it trains."""
