"""How fast an architecture is on this machine: timings in turns, paired ratios, memory, where the time goes, and a GPU's checks."""
