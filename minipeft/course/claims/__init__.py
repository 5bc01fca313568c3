"""What course notes say about PEFT and can be checked, with the numbers that decide it.

    claim.py      what a claim is: no entry without a check
    counts.py     exact counts and bytes at real models' shapes, on the meta device
    measured.py   stored measurements, and how to make them again
    computed.py   checks that compute everything when they run
    observed.py   checks that also look at measurements
    table.py      the entries
    report.py     the table as text, markdown and JSON
"""
from .claim import VERDICTS, Claim, Value, exact, fact, within
from .measured import STORED, Measurements, remeasure, stored
from .table import CLAIMS
