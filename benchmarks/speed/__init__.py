"""Whole engines next to each other: the gain of a method in time or memory, and its price."""
