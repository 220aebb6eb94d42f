"""The JSON of the API's own documents, sent as it stands there; the answers have the documents' shapes.

A sample answer stands for its structure: an answer must have all of its keys, with values of the same types. "…" is
anything. Values that follow from the request are compared besides.
"""

from __future__ import annotations

import json

import httpx
import pytest

ENDPOINTS = "/api/2.0/serving-endpoints"
ACL = "/api/2.0/permissions/serving-endpoints"

MULTI_MODEL = """
{"name":"multi-model",
 "config":{"served_entities":[
    {"name":"current","entity_name":"catalog.schema.model-A","entity_version":"1","workload_size":"Small","scale_to_zero_enabled":true},
    {"name":"challenger","entity_name":"catalog.schema.model-B","entity_version":"1","workload_size":"Small","scale_to_zero_enabled":true}],
  "traffic_config":{"routes":[
    {"served_model_name":"current","traffic_percentage":"90"},
    {"served_model_name":"challenger","traffic_percentage":"10"}]}}}
"""
DETAILED = """
{"name":"multi-model","id":"0","creator":"user@example.com",
 "creation_timestamp":1763629200000,"last_updated_timestamp":1763629200000,
 "state":{"ready":"READY","config_update":"NOT_UPDATING"},
 "config":{"config_version":1,
   "served_entities":[
     {"name":"challenger","entity_name":"catalog.schema.model-B","entity_version":"1","workload_size":"Small","workload_type":"CPU",
      "scale_to_zero_enabled":true,"creator":"user@example.com","creation_timestamp":1763629200000,
      "state":{"deployment":"DEPLOYMENT_READY","deployment_state_message":""}}],
   "served_models":[{"name":"challenger","model_name":"catalog.schema.model-B","model_version":"1","workload_size":"Small",
      "scale_to_zero_enabled":true,"state":"…"}],
   "traffic_config":{"routes":[
     {"served_model_name":"current","served_entity_name":"current","traffic_percentage":90}]}},
 "tags":[],"description":"","permission_level":"CAN_MANAGE","route_optimized":false}
"""
UPDATING = """
{"name":"multi-model","state":{"ready":"READY","config_update":"IN_PROGRESS"},
 "config":{"config_version":1,"served_entities":["…"],"traffic_config":{"routes":["…"]}},
 "pending_config":{"config_version":2,"start_time":1763629300000,"served_entities":[{"state":{"deployment":"DEPLOYMENT_CREATING"}}],
   "served_models":["…"],"traffic_config":{"routes":["…"]}}}
"""
LISTED = """
{"endpoints":[{"name":"e1","id":"0","creator":"…","creation_timestamp":1,"last_updated_timestamp":2,
  "state":{"ready":"READY","config_update":"NOT_UPDATING"},"config":{"served_entities":["…"]},"tags":[],"description":""}]}
"""
LISTED_CUSTOM = """
{"served_entities":[{"name":"m-1","entity_name":"c.s.m","entity_version":"1"}],
 "served_models":[{"name":"m-1","model_name":"c.s.m","model_version":"1"}]}
"""
BOUNDS = """
{"name":"llama2-13b-chat","config":{"served_entities":[{"entity_name":"ml.llm-catalog.llama-13b","entity_version":3,
  "min_provisioned_throughput":1960,"max_provisioned_throughput":2940}]}}
"""
TWO_MODELS = """
{"name":"multi-pt-model","config":{"served_entities":[
   {"name":"mistral_7b_instruct_v0_1-2","entity_name":"system.ai.mistral_7b_instruct_v0_1","entity_version":"2",
    "min_provisioned_throughput":0,"max_provisioned_throughput":1940},
   {"name":"mixtral_8x7b_instruct_v0_1-3","entity_name":"system.ai.mixtral_8x7b_instruct_v0_1","entity_version":"3",
    "min_provisioned_throughput":0,"max_provisioned_throughput":1240}],
 "traffic_config":{"routes":[
   {"served_model_name":"mistral_7b_instruct_v0_1-2","traffic_percentage":60},
   {"served_model_name":"mixtral_8x7b_instruct_v0_1-3","traffic_percentage":40}]}}}
"""
UNITS = """
{"name":"pt-ep","config":{"served_entities":[{"name":"llama","entity_name":"system.ai.llama-4-maverick","entity_version":"1",
  "provisioned_model_units":50,"burst_scaling_enabled":false}],
 "traffic_config":{"routes":[{"served_model_name":"llama","traffic_percentage":100}]}}}
"""
CHAT_ANSWER = """
{"id":"0","object":"chat.completion","created":1763629200,"model":"…",
 "choices":[{"index":0,"message":{"role":"assistant","content":"…"},"finish_reason":"stop"}],
 "usage":{"prompt_tokens":9,"completion_tokens":3,"total_tokens":12}}
"""
CHUNK = """
{"id":"c1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{},"finish_reason":null}]}
"""
COMPLETION = '{"object":"text_completion","choices":[{"index":0,"text":"…","finish_reason":"length"}],"usage":{"total_tokens":1}}'
EMBEDDINGS = """
{"object":"list","model":"…","data":[{"object":"embedding","index":0,"embedding":[0.1]}],"usage":{"prompt_tokens":4,"total_tokens":4}}
"""


def misfits(sample, found, place="the answer"):
    """List where an answer has not the structure of a sample."""
    match sample, found:
        case (("…" | None), _):
            return []
        case dict(), dict():
            lost = [f"{place} has no {key!r}" for key in sample.keys() - found.keys()]
            return lost + [
                it for key in sample.keys() & found.keys() for it in misfits(sample[key], found[key], f"{place}.{key}")
            ]
        case list(), list():
            empty = [f"{place} is empty"] if sample and not found else []
            return empty + [
                it
                for at, item in enumerate(found)
                for it in misfits(sample[0] if sample else "…", item, f"{place}[{at}]")
            ]
        case _:
            fits = type(found) is type(sample) or (type(sample) is float and type(found) is int)
            return [] if fits else [f"{place} is {found!r}, not like {sample!r}"]


@pytest.fixture
def http(served):
    with httpx.Client(base_url=served.url, headers={"Authorization": f"Bearer {served.ada}"}, timeout=30) as client:
        before = names(client)
        yield client
        for name in names(client) - before:
            client.delete(f"{ENDPOINTS}/{name}").raise_for_status()


def names(client):
    return {item["name"] for item in client.get(ENDPOINTS).json()["endpoints"]}


@pytest.fixture
def sent(http):
    """Send a body (a text goes as it is) and return what came back, which must be what was asked for."""

    def send(method, path, body=None, *, like=None, **headers):
        content = body if body is None or isinstance(body, str) else json.dumps(body)
        kind = {"content-type": "application/json"} if body is not None else {}
        answer = http.request(method, path, content=content, headers=kind | headers)
        assert answer.status_code == 200, answer.text
        if like is not None:
            assert misfits(json.loads(like), answer.json()) == []
        return answer.json()

    return send


@pytest.fixture
def multi_model(sent, served):
    sent("POST", ENDPOINTS, MULTI_MODEL)
    return served.workspace.wait("multi-model", 30)


@pytest.fixture
def slow():
    from custom_models import LOADED

    LOADED.clear()
    yield
    LOADED.set()


def test_a_sample_that_does_not_fit_is_seen():
    sample = json.loads('{"a":1,"b":["x"],"c":{"d":0.5},"e":"…"}')
    assert misfits(sample, {"a": 2, "b": ["y", "z"], "c": {"d": 1}, "e": None, "f": 0}) == []
    assert misfits(sample, {"a": "2", "b": [], "c": {}}) != []
    for wrong in ({"a": True}, {"b": ["y", 1]}, {"c": {"d": "1"}}, {"b": {}}):
        assert misfits(sample, {"a": 2, "b": ["y"], "c": {"d": 1}, "e": 0} | wrong) != []


def test_two_models_of_our_own_with_shares(sent, served):
    created = sent("POST", ENDPOINTS, MULTI_MODEL)
    assert created["name"] == "multi-model"
    served.workspace.wait("multi-model", 30)
    found = sent("GET", f"{ENDPOINTS}/multi-model", like=DETAILED)
    assert (len(found["id"]), found["creator"], found["config"]["config_version"]) == (32, "ada@example.com", 1)
    entities = {entity["name"]: entity for entity in found["config"]["served_entities"]}
    for wanted in json.loads(MULTI_MODEL)["config"]["served_entities"]:
        assert wanted.items() <= entities[wanted["name"]].items()
    assert [route["traffic_percentage"] for route in found["config"]["traffic_config"]["routes"]] == [90, 10]


def test_an_update_of_the_shares_keeps_the_old_config_until_it_has_loaded(sent, multi_model, slow):
    body = json.loads(MULTI_MODEL)
    body["config"]["served_entities"][1] |= {"entity_name": "demo.slow"}
    for route in body["config"]["traffic_config"]["routes"]:
        route["traffic_percentage"] = 50
    sent("PUT", f"{ENDPOINTS}/multi-model/config", {"name": "multi-model", **body["config"]}, like=UPDATING)
    found = sent("GET", f"{ENDPOINTS}/multi-model", like=UPDATING)
    assert found["state"] == {"ready": "READY", "config_update": "IN_PROGRESS"}
    old, new = (found[part]["traffic_config"]["routes"] for part in ("config", "pending_config"))
    assert [[route["traffic_percentage"] for route in routes] for routes in (old, new)] == [[90, 10], [50, 50]]
    assert {entity["state"]["deployment"] for entity in found["pending_config"]["served_entities"]} == {
        "DEPLOYMENT_CREATING"
    }


def test_the_list_of_endpoints(sent, multi_model):
    listed = {item["name"]: item for item in sent("GET", ENDPOINTS, like=LISTED)["endpoints"]}
    assert misfits(json.loads(LISTED_CUSTOM), listed["multi-model"]["config"]) == []
    assert listed["chat"]["task"] == "llm/v1/chat"
    assert "pending_config" not in listed["multi-model"]


@pytest.mark.parametrize("path", [f"{ENDPOINTS}/", ENDPOINTS])
def test_an_external_model_with_limits_and_tags(sent, served, path):
    served.workspace.secrets.put("scope", "key", "sk-0")
    body = """
    {"name":"openai_endpoint",
     "config":{"served_entities":[{"name":"openai_embeddings","external_model":{
        "name":"text-embedding-ada-002","provider":"openai","task":"llm/v1/embeddings",
        "openai_config":{"openai_api_key":"{{secrets/scope/key}}"}}}]},
     "rate_limits":[{"calls":100,"key":"user","renewal_period":"minute"}],
     "tags":[{"key":"team","value":"gen-ai"}]}
    """
    created = sent("POST", path, body)
    (entity,) = created["config"]["served_entities"]
    assert entity["external_model"] == json.loads(body)["config"]["served_entities"][0]["external_model"]
    assert entity["state"] == {"deployment": "DEPLOYMENT_READY", "deployment_state_message": ""}
    (route,) = created["config"]["traffic_config"]["routes"]
    assert (route["served_model_name"], route["traffic_percentage"]) == ("openai_embeddings", 100)
    assert created["state"]["ready"] == "READY"
    assert created["tags"] == [{"key": "team", "value": "gen-ai"}]
    assert (created["permission_level"], created["route_optimized"]) == ("CAN_MANAGE", False)
    assert "rate_limits" not in sent("GET", f"{ENDPOINTS}/openai_endpoint")
    task = {
        "name": "gpt-4",
        "provider": "openai",
        "task": "llm/v1/chat",
        "openai_config": entity["external_model"]["openai_config"],
    }
    updated = sent("PUT", f"{ENDPOINTS}/openai_endpoint/config", {"served_entities": [{"external_model": task}]})
    assert (updated["task"], updated["config"]["config_version"]) == ("llm/v1/chat", 2)


def test_two_external_models_with_half_of_the_traffic_each(sent, served):
    first, second = json.loads(json.dumps([*served.chat_config["served_entities"] * 2]))
    first["name"], second["name"] = "served_model_name_1", "served_model_name_2"
    routes = [{"served_model_name": entity["name"], "traffic_percentage": 50} for entity in (first, second)]
    config = {"served_entities": [first, second], "traffic_config": {"routes": routes}}
    created = sent("POST", ENDPOINTS, {"name": "mix-chat-endpoint", "config": config})
    assert [route["traffic_percentage"] for route in created["config"]["traffic_config"]["routes"]] == [50, 50]


@pytest.mark.usefixtures("language_models")
def test_what_throughput_a_model_can_be_given(sent):
    path = f"{ENDPOINTS}/get-model-optimization-info/ml.llm-catalog.llama-13b/3"
    found = sent("GET", path, **{"Context-Type": "text/json"})
    assert found == {"optimizable": True, "model_type": "llama", "throughput_chunk_size": 980}


@pytest.mark.usefixtures("language_models")
@pytest.mark.parametrize(("path", "body"), [(ENDPOINTS, BOUNDS), (ENDPOINTS, TWO_MODELS), (f"{ENDPOINTS}/pt", UNITS)])
def test_reserved_throughput(sent, served, path, body):
    asked = json.loads(body)
    created = sent("POST", path, body)
    assert created["name"] == asked["name"]
    served.workspace.wait(asked["name"], 30)
    found = sent(
        "GET",
        f"{ENDPOINTS}/{asked['name']}",
        like=DETAILED.replace('"workload_size":"Small",', "").replace('"scale_to_zero_enabled":true,', ""),
    )
    for wanted, entity in zip(asked["config"]["served_entities"], found["config"]["served_entities"], strict=True):
        assert entity["entity_version"] == str(wanted["entity_version"])
        assert {key: entity.get(key) for key in wanted if "provisioned" in key} == {
            key: wanted[key] for key in wanted if "provisioned" in key
        }
        assert "burst_scaling_enabled" not in entity


@pytest.mark.usefixtures("language_models")
def test_more_model_units(sent, served):
    sent("POST", f"{ENDPOINTS}/pt", UNITS)
    served.workspace.wait("pt-ep", 30)
    more = '{"config":{"served_entities":[{"entity_name":"system.ai.llama-4-maverick","provisioned_model_units":100}]}}'
    updated = sent("PUT", f"{ENDPOINTS}/pt/pt-ep/config", more)
    assert updated["name"] == "pt-ep"
    assert served.workspace.wait("pt-ep", 30)["config"]["served_entities"][0]["provisioned_model_units"] == 100


def test_the_small_updates(sent, served):
    tags = [{"key": "key1", "value": "v1"}, {"key": "key2", "value": "v2"}, {"key": "key3", "value": "v3"}]
    created = sent("POST", ENDPOINTS, {"name": "e1", "config": served.chat_config, "tags": tags})
    path = f"{ENDPOINTS}/e1"
    change = '{"add_tags":[{"key":"key2","value":"new"},{"key":"key4","value":"v4"}],"delete_tags":["key3"]}'
    changed = {
        "tags": [{"key": "key1", "value": "v1"}, {"key": "key2", "value": "new"}, {"key": "key4", "value": "v4"}]
    }
    assert sent("PATCH", f"{path}/tags", change) == changed
    for part, body in (
        ("rate-limits", '{"rate_limits":[{"key":"user","renewal_period":"minute","calls":10}]}'),
        ("ai-gateway", '{"usage_tracking_config":{"enabled":true},"rate_limits":[{"key":"user_group","principal":"ds","calls":5,"renewal_period":"minute"}]}'),
    ):  # fmt: skip
        assert sent("PUT", f"{path}/{part}", body) == json.loads(body)
    told = '{"email_notifications":{"on_update_success":["a@x"],"on_update_failure":["b@x"]}}'
    assert sent("PATCH", f"{path}/notifications", told) == {"name": "e1", **json.loads(told)}
    grant = '{"access_control_list":[{"group_name":"ds","permission_level":"CAN_QUERY"}]}'
    for method in ("PUT", "PATCH"):
        acl = sent(method, f"{ACL}/{created['id']}", grant)
        assert (acl["object_id"], acl["object_type"]) == (f"/serving-endpoints/{created['id']}", "serving-endpoint")
        wanted = {"group_name": "ds", "all_permissions": [{"permission_level": "CAN_QUERY", "inherited": False}]}
        assert wanted in [{key: item.get(key) for key in wanted} for item in acl["access_control_list"]]
    assert sent("DELETE", path) == {}


def test_the_whole_ai_gateway_block(sent, served):
    sent("POST", ENDPOINTS, {"name": "e1", "config": served.chat_config})
    body = """
    {"usage_tracking_config":{"enabled":true},
     "inference_table_config":{"enabled":true,"catalog_name":"c","schema_name":"s","table_name_prefix":"p"},
     "rate_limits":[{"key":"user","calls":100,"renewal_period":"minute"},
       {"key":"service_principal","principal":"0-1","tokens":5000,"renewal_period":"minute"}],
     "guardrails":{"input":{"pii":{"behavior":"NONE"},"invalid_keywords":["x"]},"output":{"pii":{"behavior":"NONE"}}},
     "fallback_config":{"enabled":true}}
    """
    assert sent("PUT", f"{ENDPOINTS}/e1/ai-gateway", body) == json.loads(body)
    assert sent("GET", f"{ENDPOINTS}/e1")["ai_gateway"] == json.loads(body)
    assert sent("PUT", f"{ENDPOINTS}/e1/ai-gateway", "{}") == {}


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ('{"dataframe_split":{"columns":["a","b"],"data":[[1,2],[2,3]]}}', 2),
        ('{"dataframe_records":[{"a":1,"b":2},{"a":2,"b":3}]}', 2),
        ('{"instances":[{"a":1,"b":2},{"a":2,"b":3}]}', 2),
        ('{"inputs":{"a":[1,2],"b":[2,3]}}', 2),
        ('{"dataframe_records":[{"a":1,"b":2}],"params":{"top_n":3},"client_request_id":"r-1"}', 1),
        (
            '{"dataframe_records":[{"a":1,"b":2}],"usage_context":{"team":"x"},"databricks_options":{"return_trace":true}}',
            1,
        ),
    ],
)
def test_rows_for_a_model_of_our_own(sent, body, count):
    answer = sent("POST", "/serving-endpoints/split/served-models/current/invocations", body)
    assert answer == {"predictions": [21.0, 32.0][:count]}


@pytest.mark.parametrize("body", ['{"instances":[[1,2],[3,4]]}', '{"inputs":[[1,2],[3,4]]}'])
def test_tensors_for_a_model_of_our_own(sent, body):
    answer = sent("POST", "/serving-endpoints/line/invocations", body)
    assert answer["predictions"] == pytest.approx([21.0, 43.0])


@pytest.mark.parametrize(
    ("endpoint", "body", "like"),
    [
        ("chat", '{"messages":[{"role":"user","content":"hi"}],"max_tokens":16,"temperature":0.1}', CHAT_ANSWER),
        ("claude", '{"messages":[{"role":"user","content":"hi"}],"max_tokens":16,"temperature":0.1}', CHAT_ANSWER),
        ("completions", '{"prompt":"Once","max_tokens":8}', COMPLETION),
        ("embeddings", '{"input":["t1","t2"]}', EMBEDDINGS),
        ("embeddings", '{"input":"t1"}', EMBEDDINGS),
        (
            "talker",
            '{"messages":[{"role":"user","content":"hi"}]}',
            '{"messages":[{"role":"assistant","content":"…"}]}',
        ),
        (
            "responder",
            '{"input":[{"role":"user","content":"hi"}]}',
            '{"output":[{"type":"message","content":[{"type":"output_text","text":"…"}]}]}',
        ),
    ],
)
def test_queries_of_every_task(sent, endpoint, body, like):
    answer = sent("POST", f"/serving-endpoints/{endpoint}/invocations", body, like=like)
    if endpoint == "embeddings":
        assert "completion_tokens" not in answer["usage"]


@pytest.mark.parametrize("endpoint", ["chat", "claude"])
def test_a_stream_is_data_lines_with_an_empty_line_after_each(http, endpoint):
    body = '{"messages":[{"role":"user","content":"hi"}],"stream":true,"max_tokens":9}'
    answer = http.post(f"/serving-endpoints/{endpoint}/invocations", content=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, done, rest = answer.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert [it for chunk in chunks for it in misfits(json.loads(CHUNK), chunk)] == []
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
