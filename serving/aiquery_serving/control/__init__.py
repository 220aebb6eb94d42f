"""The control plane: every management operation, as whoever asks and no more than they may do."""

from aiquery_serving.control.external_functions import ExternalAnswer, ExternalFunctions, connection_output
from aiquery_serving.control.interfaces import Interface, Interfaces
from aiquery_serving.control.model_aliases import ModelAliases
from aiquery_serving.control.plane import ControlPlane

__all__ = [
    "ControlPlane",
    "ExternalAnswer",
    "ExternalFunctions",
    "Interface",
    "Interfaces",
    "ModelAliases",
    "connection_output",
]
