"""Whether a block keeps its contract, in plain sentences: `check(cfg, group)`."""
