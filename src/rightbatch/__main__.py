"""``python -m rightbatch`` is the command ``rightbatch``."""

import sys

from rightbatch.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
