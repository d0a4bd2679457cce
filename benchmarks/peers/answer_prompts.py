"""Prompts whose answers runtimes are compared by: questions with long answers, and beginnings of texts."""

from __future__ import annotations

QUESTIONS = (
    "Why is the sky blue?",
    "Explain how a bicycle stays upright.",
    "Write a short story about a lighthouse keeper.",
    "What are the main causes of the French Revolution?",
    "Describe the water cycle step by step.",
    "Write a Python function that reverses a string, and explain it.",
    "How do vaccines work?",
    "Give me a recipe for vegetable soup.",
    "What is the difference between a virus and a bacterium?",
    "Summarize the plot of Romeo and Juliet.",
    "List five tips for learning a new language.",
    "How does a refrigerator keep food cold?",
    "Write a polite letter asking a neighbour to turn the music down.",
    "What is photosynthesis?",
    "Explain to a child what gravity is.",
    "Compare cats and dogs as pets.",
    "What happened during the Apollo 11 mission?",
    "How can I save money every month?",
    "Describe a sunset over the sea in three sentences.",
    "What does a compiler do?",
)

BEGINNINGS = (
    "The sky is blue because",
    "The history of the bicycle begins in",
    "Once upon a time, a lighthouse keeper",
    "The French Revolution was caused by",
    "Water evaporates from the sea and",
    "def reverse(text):\n    ",
    "Vaccines protect people because",
    "Vegetable soup\n\nIngredients:\n",
    "The difference between a virus and a bacterium is",
    "Romeo and Juliet is a play about",
    "Five tips for learning a new language:\n\n1.",
    "A refrigerator keeps food cold by",
    "Dear neighbour,\n\n",
    "Photosynthesis is the process by which",
    "Gravity is what makes",
    "Cats and dogs differ in",
    "On July 20, 1969,",
    "The easiest way to save money is",
    "As the sun went down over the sea,",
    "A compiler is a program that",
)
