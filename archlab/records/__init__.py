"""A run's directory: one writer, one reader."""
