"""What the notebooks and their reader need: checks, the claims of the lesson, questions.

It knows everything below. Only the commands and the notebooks enter.
"""
