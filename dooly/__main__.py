"""`python -m dooly` is the command `dooly`."""

import sys

from dooly.cli import main

if __name__ == "__main__":
    sys.exit(main())
