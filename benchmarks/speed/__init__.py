"""Speed of the models beside other libraries: `python -m benchmarks speed`, see docs/speed.md."""
