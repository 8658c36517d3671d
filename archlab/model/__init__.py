"""The decoder: where blocks meet. Its initial weights, and what it says after a prompt."""
