"""Engine directory to engines of a backend."""
