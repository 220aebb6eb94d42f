"""Custom models in processes of their own, so that one that crashes takes nobody with it."""

from aiquery_serving.entities.workers.environments import own_environment
from aiquery_serving.entities.workers.model import ProcessModel, load_in_process, usable_cores
from aiquery_serving.entities.workers.replicas import Replicas, replicas_of

__all__ = ["ProcessModel", "Replicas", "load_in_process", "own_environment", "replicas_of", "usable_cores"]
