"""A real language model, offline: read its file, talk to it, fine-tune it.

It knows the methods through recipes.py and PeftModel. The lab, the course and the commands enter.
"""
from .base import load
