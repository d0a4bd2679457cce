"""Scheduling: which tokens go into the next step, and the thread that runs steps."""
