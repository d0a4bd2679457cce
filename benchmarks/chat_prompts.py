"""Prompts for a chat model: 48 to compare engines on, and others of other topics, whose replies can be trained on."""

from __future__ import annotations

import random

_TASKS = (
    "What is {}?",
    "Explain {} to a child.",
    "Write a short paragraph about {}.",
    "List five facts about {}.",
    "Why is {} important?",
    "What are the advantages and disadvantages of {}?",
    "Give me tips on how to learn about {}.",
    "Write a short story about {}.",
)
_TOPICS = (
    *("gravity", "the water cycle", "photosynthesis", "vaccines", "electric cars", "the moon", "earthquakes", "whales"),
    *("honey bees", "the Roman Empire", "the printing press", "chess", "jazz music", "bread", "coffee", "bicycles"),
    *("the stock market", "inflation", "democracy", "time zones", "volcanoes", "rivers", "deserts", "the heart"),
    *("sleep", "meditation", "running", "swimming", "gardening", "photography", "oil painting", "poetry"),
    *("the alphabet", "prime numbers", "fractions", "statistics", "the internet", "computer memory", "sorting a list"),
    *("recursion", "version control", "unit tests", "operating systems", "batteries", "solar panels", "wind power"),
    *("recycling", "plastic", "glass", "steel", "penguins", "dogs", "horses", "elephants", "apples", "rice", "tea"),
    *("lighthouses", "bridges", "castles", "trains", "airplanes", "rockets", "satellites", "telescopes", "atoms"),
)

TESTS = (
    "What is the capital of France?",
    "How do magnets work?",
    "Write a haiku about autumn.",
    "Give me a recipe for pancakes.",
    "What is the difference between weather and climate?",
    "How can I get better at public speaking?",
    "Summarise the plot of Romeo and Juliet in three sentences.",
    "Write a Python function that returns the largest number in a list.",
    "Translate 'Good morning, how are you?' into Spanish.",
    "What should I pack for a week of hiking?",
    "Explain the rules of football.",
    "Why is the sky blue?",
    "Write a polite email that asks for a day off.",
    "What are three ways to save money?",
    "Who was Marie Curie?",
    "How does a refrigerator keep food cold?",
    "Name four kinds of clouds.",
    "What is machine learning?",
    "Describe a busy market in the morning.",
    "How many continents are there, and what are they called?",
    "Write a dialogue between a cat and a mouse.",
    "What does a lawyer do?",
    "How do I change a flat tyre?",
    "What is the Pythagorean theorem?",
    "Suggest a name for a bakery and explain your choice.",
    "What causes the tides?",
    "Explain what a variable is in programming.",
    "How do I make friends in a new city?",
    "What happened in the year 1969?",
    "Write a thank-you note to a teacher.",
    "What is the largest ocean?",
    "Compare cats and parrots as pets.",
    "How do I remove a coffee stain from a shirt?",
    "Tell me a joke about a robot.",
    "What are the primary colours?",
    "How does a bank make money?",
    "Write the first paragraph of a detective story.",
    "What is a healthy breakfast?",
    "Explain supply and demand.",
    "How do birds find their way south?",
    "What is 17 times 6?",
    "List the planets of the solar system in order.",
    "Give me a plan for a birthday party for a ten-year-old.",
    "What is the purpose of a constitution?",
    "How do I write a good resume?",
    "Describe the taste of a lemon without using the word sour.",
    "What are the steps of the scientific method?",
    "How does the human eye work?",
)
"""Prompts of which none is among `training_prompts`, and whose topics are not."""


def training_prompts(count: int, seed: int = 0) -> list[str]:
    """Return `count` different prompts in a random order that `seed` decides.

    Raises:
        ValueError: there are not so many.
    """
    prompts = [task.format(topic) for topic in _TOPICS for task in _TASKS]
    if not 0 < count <= len(prompts):
        raise ValueError(f"--count: got {count}, expected 1 to {len(prompts)}")
    return random.Random(seed).sample(prompts, count)
