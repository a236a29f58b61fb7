"""What things cost: `python -m benchmarks NAME` runs a benchmark and writes its figures into `benchmarks/results`."""
