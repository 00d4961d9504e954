"""`python -m streamlog` is the command line `streamlog`."""

import sys

from streamlog.cli import main

if __name__ == "__main__":
    sys.exit(main())
