"""What a task costs: parameters, bytes, operations, activations, rank."""
