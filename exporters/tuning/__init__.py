"""Training of what a method needs beside the checkpoint, one package or module each, found by name."""
