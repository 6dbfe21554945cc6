"""Which of the kept samples are drawn."""
