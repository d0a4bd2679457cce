"""Graph passes, one file each; `pipeline.py` gives their order."""
