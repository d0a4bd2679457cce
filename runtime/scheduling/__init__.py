"""Scheduling: chooses the tokens of each step, and runs the steps on one thread."""
