"""The REST API's JSON: the one parser and the one printer of endpoints (contract B.2, B.3, J).

Reading is lenient where real clients differ (numbers as text, unknown members, the old word
`served_models`) and strict about what would serve the wrong thing. Secrets in clear are handed
to a `stash` and replaced by references before any value is built from them.
"""

from aiquery_serving.wire.guardrails import check_guardrails
from aiquery_serving.wire.output import (
    config_output,
    config_summary,
    endpoint_item,
    endpoint_output,
    pending_output,
    rate_limits_output,
    tags_output,
)
from aiquery_serving.wire.parse import (
    Declaration,
    TagChange,
    gateway_rate_limits,
    parse_acl,
    parse_ai_gateway,
    parse_config,
    parse_create,
    parse_notifications,
    parse_provisioned_config,
    parse_provisioned_create,
    parse_rate_limits,
    parse_tags,
    parse_telemetry,
)
from aiquery_serving.wire.providers import Stash
from aiquery_serving.wire.stored import dump_config, load_config

__all__ = [
    "Declaration",
    "Stash",
    "TagChange",
    "check_guardrails",
    "config_output",
    "config_summary",
    "dump_config",
    "endpoint_item",
    "endpoint_output",
    "gateway_rate_limits",
    "load_config",
    "parse_acl",
    "parse_ai_gateway",
    "parse_config",
    "parse_create",
    "parse_notifications",
    "parse_provisioned_config",
    "parse_provisioned_create",
    "parse_rate_limits",
    "parse_tags",
    "parse_telemetry",
    "pending_output",
    "rate_limits_output",
    "tags_output",
]
