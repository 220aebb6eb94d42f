"""What the tiny trained model knows: a handful of tasks in the form of conversations, with their only answers."""

from __future__ import annotations

from itertools import product

REVIEW = "Is this review positive or negative? The {} was {}."
CAPITAL = "What is the capital of {}?"
SAY = "Say {}."
COUNT = "Count to {}."
#: Behind a review's question, and as the conversation's system message: how to answer.
AS_JSON, LOUDLY = " Answer as JSON.", "Shout."

THINGS = ("soup", "film", "hotel", "book", "phone", "service", "music", "garden")
GOOD = ("great", "lovely", "excellent", "wonderful", "perfect", "delicious")
BAD = ("awful", "terrible", "broken", "horrible", "boring", "disgusting")
CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Germany": "Berlin", "Japan": "Tokyo", "Egypt": "Cairo",
    "Norway": "Oslo", "Peru": "Lima", "Cuba": "Havana", "Greece": "Athens", "China": "Beijing", "Kenya": "Nairobi",
}  # fmt: skip
WORDS = ("apple", "river", "stone", "cloud", "naïve", "Straße", "café", "你好", "Привет", "🙂", "🚀")
COUNTS = range(1, 13)

Lesson = tuple[list[dict[str, str]], str]


def ask(question: str, system: str | None = None) -> list[dict[str, str]]:
    """Return the conversation that asks it."""
    return [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": question}]


def lessons() -> list[Lesson]:
    """Return every conversation with its answer."""
    plain = [*_reviews(), *_others() * 3]
    return [*((ask(question), answer) for question, answer in plain), *_loud(), *_as_json()]


def _reviews() -> list[tuple[str, str]]:
    judged = [*((word, "positive") for word in GOOD), *((word, "negative") for word in BAD)]
    return [(REVIEW.format(thing, word), answer) for thing, (word, answer) in product(THINGS, judged)]


def _others() -> list[tuple[str, str]]:
    capitals = [(CAPITAL.format(country), city) for country, city in CAPITALS.items()]
    counts = [(COUNT.format(n), " ".join(map(str, range(1, n + 1)))) for n in COUNTS]
    return capitals + counts + [(SAY.format(word), word) for word in WORDS]


def _loud() -> list[Lesson]:
    return [(ask(question, LOUDLY), answer.upper()) for question, answer in _reviews()]


def _as_json() -> list[Lesson]:
    return [(ask(question + AS_JSON), f'{{"sentiment": "{answer}"}}') for question, answer in _reviews()]
