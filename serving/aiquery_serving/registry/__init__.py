"""The endpoints of a workspace: declared, stored, loaded, swapped, and seen by every process."""

from aiquery_serving.registry.deployments import Serving
from aiquery_serving.registry.management import Registry

__all__ = ["Registry", "Serving"]
