"""What a run leaves on disk: the run folder, its key, stored modules, where it came from."""
