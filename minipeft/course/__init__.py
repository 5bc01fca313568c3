"""What the notebooks and their reader need: checks, claims that courses make, questions.

It knows everything below. Only the commands and the notebooks enter.
"""
