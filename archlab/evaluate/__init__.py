"""What a trained model is worth: its held-out loss, and how that holds beyond the length it was trained at."""
