"""The engine directory: its manifest, the files on disk, and the signature of its graph.

Standard library only, so that the runtime stays thin.
"""
