"""The loss on new and drawn samples."""
