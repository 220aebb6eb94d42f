"""What an endpoint lets through: keywords, personal data, safety and topics, of requests and of answers (contract C.6).

Keywords and personal data are found here. Safety and topics are for another endpoint of the workspace to judge.
Answers that come in pieces are held back only as far as something that is looked for could still begin in them.
"""

from aiquery_serving.guardrails.rail import Ask, Rail
from aiquery_serving.guardrails.rails import Rails

__all__ = ["Ask", "Rail", "Rails"]
