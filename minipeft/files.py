"""Where the data lie."""
from pathlib import Path

CHECKOUT = Path(__file__).parent.parent
DATA = CHECKOUT / "data"
NOTEBOOKS = CHECKOUT / "notebooks"
RESULTS = CHECKOUT / "benchmarks" / "results"      # of the reference runs
