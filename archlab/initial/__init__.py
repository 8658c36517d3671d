"""Is a model sane at initialisation? Forward, backward and a few steps, before any training."""
