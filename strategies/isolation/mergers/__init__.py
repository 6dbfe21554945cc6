"""The tasks' changes made into one."""
