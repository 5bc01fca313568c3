"""Strict nbval compares all text of the notebooks but what notebooks/sanitize.cfg masks."""
from pathlib import Path


def pytest_configure(config) -> None:
    if config.option.nbval_sanitize_with is None:
        config.option.nbval_sanitize_with = str(Path(__file__).parent / "notebooks/sanitize.cfg")
