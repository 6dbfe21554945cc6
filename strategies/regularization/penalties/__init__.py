"""Terms beside the loss that hold old knowledge."""
