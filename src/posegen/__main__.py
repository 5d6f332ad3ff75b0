"""``python -m posegen``, the same as ``posegen``."""

import sys

from posegen.cli import main

if __name__ == "__main__":  # a process that it starts imports this file, too
    sys.exit(main())
