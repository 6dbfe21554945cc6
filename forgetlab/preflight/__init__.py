"""What cannot be carried out, told before anything is trained."""
