"""The REST API's request objects as pydantic models: lenient about spelling, strict about kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator


class Form(BaseModel):
    """A JSON object as it arrives; null means the same as absent."""

    model_config = ConfigDict(coerce_numbers_to_str=True, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        return {member: value for member, value in data.items() if value is not None}


class ExternalModelForm(Form):
    """An external model; the provider's block is among the members that pydantic keeps as extra."""

    model_config = ConfigDict(extra="allow")

    provider: str
    name: str
    task: str | None = None


class EntityForm(Form):
    """A served entity, or a served model in the old spelling."""

    name: str | None = None
    entity_name: str | None = Field(None, validation_alias=AliasChoices("entity_name", "model_name"))
    entity_version: str | None = Field(None, validation_alias=AliasChoices("entity_version", "model_version"))
    external_model: ExternalModelForm | None = None
    workload_size: str | None = None
    workload_type: str = "CPU"
    scale_to_zero_enabled: bool = False
    min_provisioned_concurrency: int | None = None
    max_provisioned_concurrency: int | None = None
    min_provisioned_throughput: int | None = None
    max_provisioned_throughput: int | None = None
    provisioned_model_units: int | None = None
    burst_scaling_enabled: bool = True
    environment_vars: dict[str, str] = {}
    instance_profile_arn: str | None = None


class RouteForm(Form):
    """A route, which names its entity in the new or the old spelling."""

    served_entity_name: str | None = None
    served_model_name: str | None = None
    traffic_percentage: int


class TrafficForm(Form):
    """The traffic config of an endpoint."""

    routes: list[RouteForm] = []


class ConfigForm(Form):
    """An endpoint's core config; `task` is where MLflow's examples put it."""

    served_entities: list[EntityForm] | None = None
    served_models: list[EntityForm] | None = None
    traffic_config: TrafficForm = TrafficForm()
    task: str | None = None


class RateLimitForm(Form):
    """A rate limit, of an endpoint or of its AI Gateway block."""

    calls: int | None = None
    tokens: int | None = None
    key: str = "endpoint"
    principal: str | None = None
    renewal_period: str


class RateLimitsForm(Form):
    """The body of a rate limits update."""

    rate_limits: list[RateLimitForm] = []


class TagForm(Form):
    """One tag."""

    key: str = Field(min_length=1)
    value: str = ""


class TagsForm(Form):
    """The body of a tags update."""

    add_tags: list[TagForm] = []
    delete_tags: list[str] = []


class SwitchForm(Form):
    """A feature that is on or off."""

    enabled: bool


class InferenceTableForm(Form):
    """Where an AI Gateway block logs requests."""

    enabled: bool | None = None
    catalog_name: str | None = None
    schema_name: str | None = None
    table_name_prefix: str | None = None


class PiiForm(Form):
    """What a guardrail does with personal data."""

    behavior: Literal["BLOCK", "MASK", "NONE"] | None = None


class GuardrailForm(Form):
    """The guardrails of one direction."""

    safety: bool | None = None
    pii: PiiForm | None = None
    invalid_keywords: list[str] | None = None
    valid_topics: list[str] | None = None


class GuardrailsForm(Form):
    """The guardrails of both directions."""

    input: GuardrailForm | None = None
    output: GuardrailForm | None = None


class AiGatewayForm(Form):
    """The AI Gateway block (contract C.6)."""

    usage_tracking_config: SwitchForm | None = None
    inference_table_config: InferenceTableForm | None = None
    rate_limits: list[RateLimitForm] | None = None
    guardrails: GuardrailsForm | None = None
    fallback_config: SwitchForm | None = None


class NotificationsForm(Form):
    """Whom to tell of updates."""

    on_update_success: list[str] = []
    on_update_failure: list[str] = []


class CreateForm(Form):
    """The body of a create request."""

    name: str
    config: ConfigForm | None = None
    rate_limits: list[RateLimitForm] = []
    tags: list[TagForm] = []
    ai_gateway: AiGatewayForm | None = None
    description: str = ""
    route_optimized: bool = False
    email_notifications: NotificationsForm | None = None
    budget_policy_id: str | None = Field(None, validation_alias=AliasChoices("budget_policy_id", "usage_policy_id"))
