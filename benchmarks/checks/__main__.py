"""`python -m benchmarks.checks [SECTION ...]`."""

import sys

from benchmarks.checks.command import main

sys.exit(main(sys.argv[1:]))
