"""Provisioned throughput: chunks, bounds, shares and scaling (contract E). Pure decisions, told the time."""

from aiquery_serving.throughput.chunks import UNITS_PER_CHUNK, Provision, check_bounds, provision
from aiquery_serving.throughput.modelled import Speed, modelled
from aiquery_serving.throughput.scaling import Scaling
from aiquery_serving.throughput.sharing import Sharing, Taken

__all__ = [
    "UNITS_PER_CHUNK",
    "Provision",
    "Scaling",
    "Sharing",
    "Speed",
    "Taken",
    "check_bounds",
    "modelled",
    "provision",
]
