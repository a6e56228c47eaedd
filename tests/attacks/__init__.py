"""Attacks on promises of the library that a table of examples cannot show; each is a program with a seed."""
