"""`WorkspaceClient().serving_endpoints` of databricks-sdk, unmodified: every method it has (contract G.4)."""

from __future__ import annotations

import inspect
import json
import time
from pathlib import Path

import openai
import pytest
from databricks.sdk import WorkspaceClient, errors
from databricks.sdk.clock import Clock
from databricks.sdk.config import Config
from databricks.sdk.mixins.open_ai_client import ServingEndpointsExt
from databricks.sdk.service import serving as sdk
from loopback import LoopbackServer, Reply
from providers import KEY, status, vector

HELLO = [sdk.ChatMessage(role=sdk.ChatMessageRole.USER, content="good morning")]
READY = (sdk.EndpointStateReady.READY, sdk.EndpointStateConfigUpdate.NOT_UPDATING)
LIMIT = sdk.AiGatewayRateLimit(calls=500, renewal_period=sdk.AiGatewayRateLimitRenewalPeriod.MINUTE)


class Watch(Clock):
    """Passes a wait at once, after telling how long it would have been."""

    def __init__(self, then=lambda: None):
        self.slept, self._then = [], then

    def time(self):
        return time.time() + sum(self.slept)

    def sleep(self, seconds):
        self.slept.append(seconds)
        self._then()


def workspace_client(served, token=None, clock=None):
    return WorkspaceClient(config=Config(host=served.url, token=token or served.ada, clock=clock))


@pytest.fixture
def w(served):
    return workspace_client(served)


@pytest.fixture
def endpoints(w):
    api = w.serving_endpoints
    before = {endpoint.name for endpoint in api.list()}
    yield api
    for name in {endpoint.name for endpoint in api.list()} - before:
        api.delete(name)


@pytest.fixture
def chat_entity(served):
    return sdk.ServedEntityInput.from_dict(served.chat_config["served_entities"][0])


@pytest.fixture
def small(endpoints, chat_entity):
    """An endpoint of a test's own."""
    return endpoints.create_and_wait("small", config=serving(chat_entity), tags=[sdk.EndpointTag("team", "x")])


@pytest.fixture
def slow():
    """Lets a model that is slow to load go on."""
    from custom_models import LOADED

    LOADED.clear()
    yield LOADED.set
    LOADED.set()


@pytest.fixture
def loaded(served):
    """Wait for what the SDK would look for only once a second."""

    def wait_for(wait):
        served.workspace.wait(wait.name, 30)
        return wait.result()

    return wait_for


def own(model, name, version="1"):
    return sdk.ServedEntityInput(name=name, entity_name=model, entity_version=version, workload_size="Small")


def serving(*entities, **more):
    return sdk.EndpointCoreConfigInput("ignored", served_entities=list(entities), **more)


def shares(**percentages):
    return sdk.TrafficConfig([sdk.Route(share, served_model_name=name) for name, share in percentages.items()])


def test_every_method_is_tried_here():
    text = Path(__file__).read_text()
    methods = {name for name, _ in inspect.getmembers(ServingEndpointsExt, inspect.isfunction)}
    untried = {name for name in methods if not name.startswith("_") and f".{name}(" not in text}
    assert not untried


def test_a_client_says_nothing_and_knows_the_host(w, served, caplog):
    assert w.config.host == served.url
    assert not [record for record in caplog.records if record.levelname in {"WARNING", "ERROR"}]


def test_an_external_endpoint_is_ready_at_once(endpoints, small):
    assert (small.state.ready, small.state.config_update) == READY
    assert small.tags == [sdk.EndpointTag("team", "x")]
    assert small.permission_level == sdk.ServingEndpointDetailedPermissionLevel.CAN_MANAGE
    assert (small.creator, len(small.id), small.task) == ("ada@example.com", 32, "llm/v1/chat")
    assert abs(small.creation_timestamp / 1000 - time.time()) < 600
    (entity,) = small.config.served_entities
    assert entity.state.deployment == sdk.ServedModelStateDeployment.DEPLOYMENT_READY
    assert entity.external_model.provider == sdk.ExternalModelProvider.OPENAI
    assert small.config.traffic_config.routes[0].traffic_percentage == 100
    found = endpoints.get("small")
    assert found.as_dict() == small.as_dict()
    assert KEY not in json.dumps(found.as_dict())
    listed = next(item for item in endpoints.list() if item.name == "small")
    assert (listed.id, listed.state.ready, listed.config.served_entities[0].name) == (small.id, READY[0], entity.name)
    assert endpoints.delete("small") is None
    with pytest.raises(errors.ResourceDoesNotExist):
        endpoints.get("small")


def test_models_of_our_own_load_while_create_waits(endpoints, slow):
    wait = endpoints.create("slow", config=serving(own("demo.slow", "s")))
    assert wait.response.name == wait.name == "slow"
    assert wait.response.state.config_update == sdk.EndpointStateConfigUpdate.IN_PROGRESS
    slow()
    seen = []
    found = wait.result(callback=lambda endpoint: seen.append(endpoint.state.config_update))
    assert (found.state.ready, found.state.config_update) == READY
    assert endpoints.wait_get_serving_endpoint_not_updating("slow").id == found.id
    assert endpoints.build_logs("slow", "s").logs is not None
    assert endpoints.logs("slow", "s").logs is not None


def test_an_update_is_pending_until_it_has_loaded_and_is_the_only_one(endpoints, slow, loaded):
    loaded(endpoints.create("e", config=serving(own("demo.shop.forecast_a", "a"))))
    wait = endpoints.update_config("e", served_entities=[own("demo.slow", "s")], traffic_config=shares(s=100))
    assert wait.response.name == "e"
    found = endpoints.get("e")
    assert (found.state.ready, found.state.config_update) == (READY[0], sdk.EndpointStateConfigUpdate.IN_PROGRESS)
    assert [entity.name for entity in found.config.served_entities] == ["a"]
    assert [entity.name for entity in found.pending_config.served_entities] == ["s"]
    assert found.pending_config.config_version == 2
    with pytest.raises(errors.ResourceConflict):
        endpoints.update_config("e", served_entities=[own("demo.shop.line", "line")])
    assert endpoints.query("e", dataframe_records=[{"a": 1.0, "b": 2.0}]).served_model_name == "a"
    slow()
    assert loaded(wait).config.config_version == 2
    assert endpoints.query("e", dataframe_records=[{"x": 1.0}]).served_model_name == "s"


def test_an_update_that_fails_says_so(endpoints, loaded):
    entity = sdk.ServedEntityInput(
        name="s", entity_name="demo.slow", entity_version="1", environment_vars={"KEY": "{{secrets/none/none}}"}
    )
    loaded(endpoints.create("f", config=serving(own("demo.slow", "a"))))
    with pytest.raises(errors.OperationFailed, match="UPDATE_FAILED"):
        loaded(endpoints.update_config("f", served_entities=[entity]))
    found = endpoints.get("f")
    assert (found.state.ready, found.config.served_entities[0].name) == (READY[0], "a")
    assert "none" in endpoints.build_logs("f", "s").logs
    found = endpoints.update_config_and_wait("chat", served_entities=endpoints.get("chat").config.served_entities)
    assert (found.state.ready, found.state.config_update) == READY


def test_the_deprecated_served_models_and_two_shares(endpoints, loaded):
    models = [
        sdk.ServedModelInput(True, f"demo.shop.{model}", "1", name=name, workload_size="Small")
        for name, model in (("current", "forecast_a"), ("challenger", "forecast-b"))
    ]
    split = shares(current=90, challenger=10)
    config = sdk.EndpointCoreConfigInput("old", served_models=models, traffic_config=split)
    found = loaded(endpoints.create("old", config=config))
    assert {model.name for model in found.config.served_models} == {"current", "challenger"}
    names = [endpoints.query("old", inputs={"a": [1.0], "b": [2.0]}).served_model_name for _ in range(20)]
    assert (names.count("current"), names.count("challenger")) == (18, 2)


def test_the_small_updates(endpoints, small):
    change = endpoints.patch("small", add_tags=[sdk.EndpointTag("cost", "low")], delete_tags=["team"])
    assert change.tags == [sdk.EndpointTag("cost", "low")]
    limit = sdk.RateLimit(10, sdk.RateLimitRenewalPeriod.MINUTE, sdk.RateLimitKey.USER)
    assert endpoints.put("small", rate_limits=[limit]).rate_limits == [limit]
    told = sdk.EmailNotifications(on_update_failure=["b@x"], on_update_success=["a@x"])
    answer = endpoints.update_notifications("small", email_notifications=told)
    assert (answer.name, answer.email_notifications) == ("small", told)
    assert endpoints.get("small").email_notifications == told


def test_the_ai_gateway_block(endpoints, small):
    guards = sdk.AiGatewayGuardrails(input=sdk.AiGatewayGuardrailParameters(invalid_keywords=["secret"]))
    answer = endpoints.put_ai_gateway(
        "small",
        fallback_config=sdk.FallbackConfig(enabled=False),
        guardrails=guards,
        rate_limits=[LIMIT],
        usage_tracking_config=sdk.AiGatewayUsageTrackingConfig(enabled=True),
    )
    assert (answer.guardrails, answer.usage_tracking_config.enabled) == (guards, True)
    assert (answer.rate_limits[0].calls, answer.fallback_config.enabled) == (500, False)
    assert endpoints.get("small").ai_gateway.as_dict() == answer.as_dict()


def test_telemetry_is_for_models_of_our_own(endpoints, small, loaded):
    tables = sdk.TelemetryConfig(table_names=sdk.UnityCatalogTableNames(logs_table="main.logs.e"))
    with pytest.raises(errors.InvalidParameterValue, match="EXTERNAL_MODELS"):
        endpoints.patch_telemetry_config("small", telemetry_config=tables)
    loaded(endpoints.create("t", config=serving(own("demo.shop.forecast_a", "a"))))
    found = endpoints.patch_telemetry_config("t", telemetry_config=tables)
    assert found.telemetry_config.telemetry_profile_id
    assert found.telemetry_config.table_names is None
    assert endpoints.patch_telemetry_config("t").telemetry_config is None


@pytest.mark.usefixtures("language_models")
def test_provisioned_throughput(endpoints, loaded):
    served = sdk.PtServedModel("ml.llm-catalog.llama-13b", 50, entity_version="3", name="llama")
    config = sdk.PtEndpointCoreConfig(served_entities=[served], traffic_config=shares(llama=100))
    wait = endpoints.create_provisioned_throughput_endpoint("pt-ep", config)
    assert wait.response.name == "pt-ep"
    found = loaded(wait)
    assert found.config.served_entities[0].provisioned_model_units == 50
    more = sdk.PtEndpointCoreConfig(served_entities=[sdk.PtServedModel("ml.llm-catalog.llama-13b", 100, name="llama")])
    found = loaded(endpoints.update_provisioned_throughput_endpoint_config("pt-ep", more))
    assert found.config.served_entities[0].provisioned_model_units == 100
    found = endpoints.update_provisioned_throughput_endpoint_config_and_wait("pt-ep", config)
    assert (found.config.served_entities[0].provisioned_model_units, found.config.config_version) == (50, 3)
    found = endpoints.create_provisioned_throughput_endpoint_and_wait("pt-two", config)
    assert (found.state.ready, found.state.config_update) == READY


def test_permissions_are_given_by_id_and_hold_at_once(endpoints, small, served):
    bob = workspace_client(served, served.bob).serving_endpoints
    level = sdk.ServingEndpointPermissionLevel
    with pytest.raises(errors.PermissionDenied, match=r"'bob@example\.com'"):
        bob.query("small", messages=HELLO)
    grant = sdk.ServingEndpointAccessControlRequest(user_name="bob@example.com", permission_level=level.CAN_QUERY)
    answer = endpoints.set_permissions(small.id, access_control_list=[grant])
    assert (answer.object_id, answer.object_type) == (f"/serving-endpoints/{small.id}", "serving-endpoint")
    given = {
        item.user_name or item.group_name: item.all_permissions[0].permission_level
        for item in answer.access_control_list
    }
    everybody = {"ada@example.com": level.CAN_MANAGE, "bob@example.com": level.CAN_QUERY, "admins": level.CAN_MANAGE}
    assert given == everybody
    assert bob.query("small", messages=HELLO).choices
    with pytest.raises(errors.PermissionDenied):
        bob.delete("small")
    team = sdk.ServingEndpointAccessControlRequest(group_name="team", permission_level=level.CAN_VIEW)
    answer = endpoints.update_permissions(small.id, access_control_list=[team])
    assert {item.group_name for item in answer.access_control_list} >= {"team", None}
    assert endpoints.get_permissions(small.id).as_dict() == answer.as_dict()
    levels = endpoints.get_permission_levels(small.id).permission_levels
    assert {item.permission_level for item in levels} == set(level)
    assert all(item.description for item in levels)
    endpoints.set_permissions(small.id)
    with pytest.raises(errors.PermissionDenied):
        bob.get("small")


def test_queries_of_every_task(endpoints):
    answer = endpoints.query("chat", messages=HELLO, max_tokens=9, temperature=0.5, n=1, stop=["."])
    assert answer.choices[0].message.content == "echo: good morning"
    assert answer.object == sdk.QueryEndpointResponseObject.CHAT_COMPLETION
    assert (answer.usage.total_tokens, answer.served_model_name) == (5, "gpt-4o")
    assert endpoints.query("claude", messages=HELLO, max_tokens=9).choices[0].message.content == "echo: good morning"
    assert endpoints.query("completions", prompt="one").choices[0].text == "echo: one"
    embedded = endpoints.query("embeddings", input=["one", "two"])
    assert [item.embedding for item in embedded.data] == [vector("one"), vector("two")]
    extra = endpoints.query(
        "chat", messages=HELLO, extra_params={"top_p": "0.5"}, client_request_id="r-1", usage_context={"team": "x"}
    )
    assert extra.choices


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("split", {"dataframe_records": [{"a": 1.0, "b": 2.0}]}),
        ("split", {"dataframe_split": sdk.DataframeSplitInput(columns=["a", "b"], data=[[1.0, 2.0]])}),
        ("split", {"inputs": {"a": [1.0], "b": [2.0]}}),
        ("line", {"instances": [[1.0, 2.0]]}),
    ],
)
def test_queries_of_models_of_our_own(endpoints, name, rows):
    answer = endpoints.query(name, **rows)
    assert abs(answer.predictions[0]) == pytest.approx(21.0)
    assert answer.served_model_name in {"current", "challenger", "line"}


def test_metrics_and_the_open_api_document(endpoints, small):
    endpoints.query("small", messages=HELLO)
    metrics = endpoints.export_metrics("small").contents.read().decode()
    assert "# TYPE" in metrics
    assert "small" in metrics
    document = json.loads(endpoints.get_open_api("small").contents.read())
    assert document["openapi"].startswith("3.1")
    assert "/served-models/gpt-4o/invocations" in document["paths"]


def test_requests_through_a_connection(endpoints, served):
    def upstream(request):
        asked = {"path": request.path, "key": request.headers.get("authorization"), "body": request.body.decode()}
        return Reply(body=json.dumps(asked).encode(), headers={"mcp-session-id": "s-1"})

    workspace = served.workspace
    with LoopbackServer(upstream) as server:
        ada = workspace.access.principal(workspace.user)
        workspace.secrets.put("team", "key", "k-1")
        workspace.control.external.create(ada, "tickets", server.origin, bearer_token="{{secrets/team/key}}")
        try:
            answer = endpoints.http_request(
                "tickets", sdk.ExternalFunctionRequestHttpMethod.POST, "/new", json={"a": "b"}, params={"q": "1"}
            )  # fmt: skip
        finally:
            workspace.control.external.delete(ada, "tickets")
    assert answer.json() == {"path": "/new?q=1", "key": "Bearer k-1", "body": '{"a": "b"}'}
    assert answer.headers["mcp-session-id"] == "s-1"


@pytest.mark.filterwarnings("ignore:get_open_ai_client:DeprecationWarning")
def test_the_open_ai_client_that_comes_with_it(endpoints):
    with endpoints.get_open_ai_client(max_retries=0) as client:
        asked = [{"role": "user", "content": "hi"}]
        assert client.chat.completions.create(model="chat", messages=asked).choices[0].message.content == "echo: hi"
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="none", messages=asked)


@pytest.mark.filterwarnings("ignore:get_langchain_chat:DeprecationWarning")
def test_the_langchain_client_that_comes_with_it(endpoints):
    pytest.importorskip("langchain_openai", reason="comes with databricks-sdk[openai]")
    client = endpoints.get_langchain_chat_open_ai_client("chat")
    with client.http_client:
        assert client.invoke("hi").content == "echo: hi"


def test_a_route_optimised_endpoint_names_its_address(endpoints, w, served, loaded):
    config = serving(own("demo.shop.line", "line"))
    found = loaded(endpoints.create("fast", config=config, route_optimized=True))
    assert found.endpoint_url == found.data_plane_info.query_info.endpoint_url
    assert found.endpoint_url == f"{served.url}/serving-endpoints/fast/invocations"
    # The SDK queries it with OAuth alone, which it has none of here; everybody else may with their token.
    with pytest.raises(ValueError, match="OAuth tokens are not available"):
        w.serving_endpoints_data_plane.query("fast", instances=[[1.0, 2.0]])
    assert endpoints.query("fast", instances=[[1.0, 2.0]]).predictions == [pytest.approx(21.0)]


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda w: w.serving_endpoints.get("none"), errors.ResourceDoesNotExist, "'none' does not exist"),
        (lambda w: w.serving_endpoints.query("none", messages=HELLO), errors.ResourceDoesNotExist, "'none' does not exist"),
        (lambda w: w.serving_endpoints.get_permissions("0" * 32), errors.ResourceDoesNotExist, "0000"),
        (lambda w: w.serving_endpoints.logs("chat", "none"), errors.ResourceDoesNotExist, "'none'"),
        (lambda w: w.serving_endpoints.create("chat"), errors.ResourceAlreadyExists, "'chat'"),
        (lambda w: w.serving_endpoints.create("a b"), errors.InvalidParameterValue, "a b"),
        (lambda w: w.serving_endpoints.query("chat", prompt="x"), errors.InvalidParameterValue, "messages"),
        (lambda w: w.serving_endpoints.query("grumpy", inputs={"x": [13.0]}), errors.BadRequest, "thirteen brings bad luck"),
        (lambda w: w.api_client.do("GET", "/api/2.0/none"), errors.NotFound, "/api/2.0/none"),
        (lambda w: w.api_client.do("GET", "/api/2.0/serving-endpoints/chat/none"), errors.NotFound, "none"),
    ],
)  # fmt: skip
def test_errors_are_the_sdks_own(w, served, call, kind, text):
    with pytest.raises(kind) as caught:
        call(w)
    assert type(caught.value) is kind
    assert text in str(caught.value)


def test_who_is_unknown_is_told_so(served):
    with pytest.raises(errors.Unauthenticated):
        workspace_client(served, "wrong").serving_endpoints.get("chat")


def test_the_sdk_comes_again_when_a_rate_limit_says_so(endpoints, chat_entity, served):
    limit = sdk.RateLimit(1, sdk.RateLimitRenewalPeriod.MINUTE)
    endpoints.create_and_wait("hurried", config=serving(chat_entity), rate_limits=[limit])
    watch = Watch(then=lambda: endpoints.put("hurried", rate_limits=[]))
    patient = workspace_client(served, clock=watch).serving_endpoints
    assert patient.query("hurried", messages=HELLO).choices
    assert patient.query("hurried", messages=HELLO).choices
    (slept,) = watch.slept
    assert 2 < slept < 62


def test_the_sdk_gives_up_after_its_own_time(endpoints, chat_entity, served):
    limit = sdk.RateLimit(1, sdk.RateLimitRenewalPeriod.MINUTE)
    endpoints.create_and_wait("busy", config=serving(chat_entity), rate_limits=[limit])
    impatient = workspace_client(served, clock=Watch()).serving_endpoints
    assert impatient.query("busy", messages=HELLO).choices
    with pytest.raises(TimeoutError) as caught:
        impatient.query("busy", messages=HELLO)
    assert type(caught.value.__cause__) is errors.RequestLimitExceeded
    assert "busy" in str(caught.value.__cause__)


def test_the_sdk_comes_again_after_a_provider_was_down(moody, served):
    # Longer than our own attempts last.
    moody.provider.fault = status(503)

    def recover():
        moody.provider.fault = None

    watch = Watch(then=recover)
    patient = workspace_client(served, clock=watch).serving_endpoints
    assert patient.query(moody.endpoint, messages=HELLO).choices
    assert watch.slept
