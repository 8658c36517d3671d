"""What training takes in memory, counted from the model's shapes: nothing is run and nothing allocated."""
