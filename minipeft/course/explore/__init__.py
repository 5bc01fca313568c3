"""One interactive page of what is stored: runs, rates, and the levels of 4-bit codes.

    runs.py       what the runs that report cost and gave
    rates.py      the learning rates that were tried
    levels.py     a model's weights, and what the levels of each code get
    page.py       the three in page.html, with plotly.js
"""
from .page import html, write
