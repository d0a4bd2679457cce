"""Graph passes that serve one backend, one file each."""
