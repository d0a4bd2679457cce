"""The commands that need an engine directory alone: run, bench, inspect, eval."""
