"""The commands that read a checkpoint: build, export-checkpoint, check, tune.

A command composes packages, so the modules of this folder may import from all of them.
"""
