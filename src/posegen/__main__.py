"""``python -m posegen``, the same as ``posegen``."""

import sys

from posegen.cli import main

sys.exit(main())
