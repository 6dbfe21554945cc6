"""``python -m forgetlab``."""

from forgetlab.cli.main import main

main()
