"""Where the data lie."""
from pathlib import Path

PACKAGE = Path(__file__).parent
CHECKOUT = PACKAGE.parent
IN_WHEEL = (PACKAGE / "data").is_dir()      # pyproject.toml puts it there; a checkout has data/
DATA = PACKAGE / "data" if IN_WHEEL else CHECKOUT / "data"
# of the reference runs
RESULTS = PACKAGE / "results" if IN_WHEEL else CHECKOUT / "benchmarks" / "results"
