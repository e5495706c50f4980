"""The checks that the methods' specifications ask for, as one table of expected and measured.

    python -m benchmarks checks [SECTION ...]

Each module is one published method; its `checks()` yields a `Check` for each line of the table.
"""
