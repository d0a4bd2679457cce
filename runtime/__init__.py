"""Engine directory to tokens."""
