"""Custom models in processes of their own, so that one that crashes takes nobody with it."""

from aiquery_serving.entities.workers.model import ProcessModel, load_in_process

__all__ = ["ProcessModel", "load_in_process"]
