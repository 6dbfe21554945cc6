"""Which old samples are kept and drawn."""
