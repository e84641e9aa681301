"""The classifications of the multiple-choice questions, as in ScienceQA."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Lesson:
    """The classification of a question in ScienceQA; ``grades`` are the first and the last one."""

    subject: str
    topic: str
    category: str
    skill: str
    lecture: str
    grades: tuple[int, int]


READING = Lesson(
    subject="language science",
    topic="reading-comprehension",
    category="Pictures",
    skill="Read a digit in a picture",
    lecture="A picture has corners. Look at the corner that the question names.",
    grades=(1, 4),
)
WRITING = Lesson(
    subject="language science",
    topic="vocabulary",
    category="Words",
    skill="Choose the word for a number",
    lecture="Every number has a word that names it.",
    grades=(1, 7),
)
ADDING = Lesson(
    subject="natural science",
    topic="units-and-measurement",
    category="Measurement",
    skill="Add two numbers",
    lecture="A sum is what two numbers make together.",
    grades=(2, 8),
)
COUNTING = Lesson(
    subject="natural science",
    topic="science-and-engineering-practices",
    category="Data",
    skill="Count what is alike",
    lecture="An even number can be divided by two. An odd number cannot.",
    grades=(4, 12),
)
COMPARING = Lesson(
    subject="natural science",
    topic="science-and-engineering-practices",
    category="Data",
    skill="Compare numbers",
    lecture="The largest number is the one that no other exceeds.",
    grades=(3, 11),
)
MAPS = Lesson(
    subject="social science",
    topic="geography",
    category="Maps",
    skill="Use a map",
    lecture="A map shows where places are.",
    grades=(5, 12),
)
TRADE = Lesson(
    subject="social science",
    topic="economics",
    category="Goods",
    skill="Compare what people have",
    lecture="People have goods, and some have more than others.",
    grades=(3, 10),
)
