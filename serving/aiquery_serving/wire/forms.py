"""The REST API's request objects as pydantic models: lenient about spelling, strict about kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

PermissionLevel: TypeAlias = Literal["CAN_VIEW", "CAN_QUERY", "CAN_MANAGE"]
TelemetryFeature: TypeAlias = Literal[
    "TELEMETRY_FEATURE_INFERENCE_TABLE",
    "TELEMETRY_FEATURE_LOGS",
    "TELEMETRY_FEATURE_METRICS",
    "TELEMETRY_FEATURE_TRACES",
]


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


class AutoCaptureForm(Form):
    """Where an endpoint logs requests, in the deprecated way."""

    catalog_name: str | None = None
    schema_name: str | None = None
    table_name_prefix: str | None = None
    enabled: bool = True


class ConfigForm(Form):
    """An endpoint's core config; `task` is where MLflow's examples put it."""

    served_entities: list[EntityForm] | None = None
    served_models: list[EntityForm] | None = None
    traffic_config: TrafficForm = TrafficForm()
    auto_capture_config: AutoCaptureForm | None = None
    task: str | None = None


class ProvisionedEntityForm(EntityForm):
    """A served model that reserves throughput in model units."""

    entity_name: str
    provisioned_model_units: int


class ProvisionedConfigForm(ConfigForm):
    """The core config of an endpoint of reserved throughput."""

    served_entities: list[ProvisionedEntityForm]  # type: ignore[assignment]  # a list that nobody adds to


class ProvisionedUpdateForm(Form):
    """The body of a config update of an endpoint of reserved throughput."""

    config: ProvisionedConfigForm


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
    """The guardrails of one direction; the endpoints that judge for them are ours alone."""

    safety: bool | None = None
    pii: PiiForm | None = None
    invalid_keywords: list[str] | None = None
    valid_topics: list[str] | None = None
    safety_endpoint: str | None = None
    topics_endpoint: str | None = None


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


class NotificationsUpdateForm(Form):
    """The body of a notifications update."""

    email_notifications: NotificationsForm | None = None


class TableNamesForm(Form):
    """The tables that telemetry is written to."""

    logs_table: str | None = None
    traces_table: str | None = None
    metrics_table: str | None = None
    annotations_table: str | None = None


class PayloadTableForm(Form):
    """The table that telemetry writes requests to, and the share of them."""

    name: str | None = None
    sampling_fraction: float | None = Field(None, ge=0, le=1)


class TelemetryForm(Form):
    """What an endpoint reports, and where (contract B.2)."""

    telemetry_profile_id: str | None = None
    table_names: TableNamesForm | None = None
    inference_table_config: PayloadTableForm | None = None
    enabled_telemetry_features: list[TelemetryFeature] | None = None


class TelemetryUpdateForm(Form):
    """The body of a telemetry update; without a config it is removed."""

    telemetry_config: TelemetryForm | None = None


class GrantForm(Form):
    """A level of permission for one principal."""

    user_name: str | None = None
    group_name: str | None = None
    service_principal_name: str | None = None
    permission_level: PermissionLevel


class AclForm(Form):
    """The body of a permissions update."""

    access_control_list: list[GrantForm] = []


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
    telemetry_config: TelemetryForm | None = None
    budget_policy_id: str | None = Field(None, validation_alias=AliasChoices("budget_policy_id", "usage_policy_id"))


class ProvisionedCreateForm(CreateForm):
    """The body of a create request for reserved throughput."""

    config: ProvisionedConfigForm
