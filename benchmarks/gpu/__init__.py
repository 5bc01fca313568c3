"""The parts of gpu_evidence.py: each has CASES, SMOKE, measure, table and figure."""
