"""Conversations as prompts: chat templates, what they are given, and the Jinja environment they are written for."""
