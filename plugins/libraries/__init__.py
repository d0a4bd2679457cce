"""Finds the native libraries, loads them, and calls their C functions."""
