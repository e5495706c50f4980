"""Run the project's habits in order: format, lint, types, floors, tests.

`python check.py --fast` leaves the tests out.
"""

import subprocess
import sys

HABITS = [
    ["ruff", "format", "--check", "."],
    ["ruff", "check", "."],
    ["mypy"],
    ["lint-imports"],
]
TESTS = ["pytest", "-n", "2", "-m", "not slow"]


def main() -> int:
    """Run every habit, stop at the first that fails, and return its exit code."""
    fast = "--fast" in sys.argv[1:]
    for command in HABITS if fast else [*HABITS, TESTS]:
        print("$", *command, flush=True)
        code = subprocess.call(command)
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
