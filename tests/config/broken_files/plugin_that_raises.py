"""A plug-in file that cannot be loaded."""

raise RuntimeError("not today")
