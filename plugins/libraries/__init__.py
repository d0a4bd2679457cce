"""The native libraries: finds them, loads them, and calls their C functions."""
