"""What tests of several rooms share. A name of its own: avalanche-lib installs a top-level ``tests``."""
