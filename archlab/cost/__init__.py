"""What a model costs: parameters, FLOPs, bytes kept for the backward pass, and the memory that training takes."""
