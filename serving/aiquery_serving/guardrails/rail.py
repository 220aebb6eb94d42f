"""The guardrails of one direction: what they find in texts, whom they ask, and how they refuse."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self, TypeAlias

from aiquery_serving.errors import GuardrailError
from aiquery_serving.guardrails import personal
from aiquery_serving.guardrails.texts import rewritten, spoken
from aiquery_serving.guardrails.verdicts import read_safety, read_topics, safety_question, topics_question
from aiquery_serving.guardrails.words import folded, whole_words
from aiquery_serving.messages import Json

#: Asks a chat endpoint of the workspace, by name, with a request body; returns the text of its answer. It must not be
#: guarded itself, or an endpoint that judges its own requests would never answer.
Ask: TypeAlias = Callable[[str, Json], Awaitable[str]]

#: Texts of more characters are looked at on a thread, so that the event loop does not wait.
LONG: Final = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Rail:
    """The guardrails of one direction.

    Attributes:
        direction: `input` or `output`.
        keywords: Finds what may not be said in a folded text.
        longest_keyword: Characters of the longest of them.
        pii: What happens to personal data: `BLOCK`, `MASK`, or None.
        safety_endpoint: Who judges safety.
        topics: What the text has to be about.
        topics_endpoint: Who judges that.
    """

    direction: str
    keywords: re.Pattern[str] | None = None
    longest_keyword: int = 0
    pii: str | None = None
    safety_endpoint: str | None = None
    topics: tuple[str, ...] = ()
    topics_endpoint: str | None = None

    @classmethod
    def parse(cls, direction: str, block: Mapping[str, Any] | None) -> Self:
        """Read the guardrails of one direction from an AI Gateway block that `parse_ai_gateway` has made."""
        block = block or {}
        keywords, topics = block.get("invalid_keywords") or (), tuple(block.get("valid_topics") or ())
        behavior, safety = (block.get("pii") or {}).get("behavior"), block.get("safety_endpoint")
        return cls(
            direction=direction,
            keywords=whole_words(keywords) if keywords else None,
            longest_keyword=max((len(folded(word)) for word in keywords), default=0),
            pii=behavior if behavior in ("BLOCK", "MASK") else None,
            safety_endpoint=safety if block.get("safety") else None,
            topics=topics,
            topics_endpoint=(block.get("topics_endpoint") or safety) if topics else None,
        )

    @property
    def reads(self) -> bool:
        """Whether texts are looked through here."""
        return self.keywords is not None or self.pii is not None

    @property
    def judges(self) -> bool:
        """Whether another endpoint is asked, which needs whole texts."""
        return self.safety_endpoint is not None or self.topics_endpoint is not None

    def keyword_in(self, text: str) -> bool:
        """Say whether a text has a keyword."""
        return self.keywords is not None and self.keywords.search(folded(text)) is not None

    def findings(self, text: str) -> list[personal.Finding]:
        """Return the personal data in a text, if that is looked for."""
        return personal.find(text) if self.pii is not None else []

    def refusal(self, flagged: Iterable[str]) -> GuardrailError:
        """Return the error that names what was flagged, and quotes nothing."""
        what = "request" if self.direction == "input" else "answer"
        return GuardrailError(
            f"The endpoint's {self.direction} guardrail refuses the {what}. Flagged: {', '.join(flagged)}.",
            finish_reason=f"{self.direction}_guardrail_triggered",
        )

    async def looked_through(self, body: Mapping[str, Any], members: tuple[str, ...]) -> Mapping[str, Any]:
        """Return a body with personal data masked, if that is wanted.

        Raises:
            GuardrailError: It has keywords, or personal data that is to be blocked.
        """
        if not self.reads:
            return body
        size = sum(len(text) for _, text in spoken(body, members))
        if size > LONG or (self.pii and not personal.loaded()):
            return await asyncio.to_thread(self._looked_through, body, members)
        return self._looked_through(body, members)

    async def judge(self, said: Sequence[Json], topical: Sequence[Json], ask: Ask) -> None:
        """Have the endpoints that judge safety and topics judge a conversation, and what must be on topic in it.

        Raises:
            GuardrailError: It is unsafe, or about something else.
            AiQueryError: An endpoint did not answer, or neither yes nor no: nothing passes unjudged.
        """
        if self.safety_endpoint is not None and said:
            verdict = read_safety(await ask(self.safety_endpoint, safety_question(said)), self.safety_endpoint)
            if verdict is not None:
                raise self.refusal([verdict])
        if self.topics_endpoint is not None and topical:
            answer = await ask(self.topics_endpoint, topics_question(topical, self.topics))
            if not read_topics(answer, self.topics_endpoint):
                raise self.refusal(["valid_topics"])

    def _looked_through(self, body: Mapping[str, Any], members: tuple[str, ...]) -> Mapping[str, Any]:
        flagged: set[str] = set()
        texts: dict[str, str] = {}
        for _, text in spoken(body, members):
            found = self.findings(text)
            flagged |= {"invalid_keywords"} if self.keyword_in(text) else set()
            flagged |= {f"pii ({finding.kind})" for finding in found} if self.pii == "BLOCK" else set()
            texts[text] = personal.masked(text, found)
        if flagged:
            raise self.refusal(sorted(flagged))
        if all(before == after for before, after in texts.items()):
            return body
        return rewritten(body, members, texts.__getitem__)
