"""How the domains of a stream differ, one file each."""
