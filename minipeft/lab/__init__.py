"""Measurements: the comparison of all methods, the memory planner, benches beside the libraries.

It knows everything below. Only the course and the commands enter.
"""
