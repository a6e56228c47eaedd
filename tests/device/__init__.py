"""Tests that run on a real accelerator: `conftest.py` says how."""
