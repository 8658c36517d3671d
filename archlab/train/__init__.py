"""How a model learns: settings, schedule, optimiser, precision, and the loop that reads top to bottom."""
