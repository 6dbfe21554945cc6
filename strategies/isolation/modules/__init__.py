"""What one task adds to a frozen backbone, by form."""
