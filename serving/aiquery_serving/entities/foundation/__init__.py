"""Foundation models as served entities: the REST API's requests to engines and back (contract D.2-D.5)."""

from aiquery_serving.entities.foundation.entity import FoundationEntity
from aiquery_serving.entities.foundation.opening import load_foundation

__all__ = ["FoundationEntity", "load_foundation"]
