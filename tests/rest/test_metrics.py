"""What a server counts, as Prometheus reads it: all endpoints for admins, one for who may view it."""

from __future__ import annotations

import os
import subprocess
import sys

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from aiquery.server import serve
from aiquery_serving.rest.messages import Exchange
from aiquery_serving.rest.metrics import Metrics
from aiquery_serving.usage import Invocation

HELLO = {"messages": [{"role": "user", "content": "hello there"}]}


def values(text, **labels):
    """Return the value of every sample that has these labels, by its name and its bucket's bound."""
    return {
        sample.name + sample.labels.get("le", ""): sample.value
        for family in text_string_to_metric_families(text if isinstance(text, str) else text.decode())
        for sample in family.samples
        if labels.items() <= sample.labels.items()
    }


def exchange(endpoint="chat", served_entity="gpt", status=200, ms=3.0):
    return Exchange(
        "id", "POST", "/", 10.0, 10.0 + ms / 1000, endpoint=endpoint, served_entity=served_entity, status=status
    )


def counted(*exchanges):
    metrics = Metrics()
    for each in exchanges:
        metrics.asked(each)
        metrics.ended(each)
    return metrics


def test_requests_are_counted_by_what_became_of_them():
    statuses = (200, 200, 404, 429, 499, 500, 503)
    got = values(counted(*(exchange(status=status) for status in statuses)).export("chat"), endpoint_name="chat")
    assert got["request_count_total"] == 7
    assert got["request_4xx_count_total"] == 3
    assert got["request_5xx_count_total"] == 2


def test_latencies_fall_into_buckets_of_milliseconds():
    got = values(counted(exchange(ms=3), exchange(ms=70_000)).export("chat"), served_entity_name="gpt")
    assert got["request_latency_ms_bucket2.5"] == 0
    assert got["request_latency_ms_bucket5.0"] == 1
    assert got["request_latency_ms_bucket60000.0"] == 1
    assert got["request_latency_ms_bucket120000.0"] == 2
    assert got["request_latency_ms_count"] == 2
    assert got["request_latency_ms_sum"] == pytest.approx(70_003)


def test_engines_of_models_report_what_they_do():
    metrics, labels = Metrics(), {"endpoint": "local", "served_entity": "tiny"}
    numbers = {"running": 3, "waiting": 2, "completion_tokens": 70, "prefix_hit_rate": 0.5, "kv_tokens_used": 90}
    metrics.sample([{**labels, **numbers, "engine": "torch", "device": "cpu"}])
    got = values(metrics.export("local"), endpoint_name="local", served_entity_name="tiny")
    assert got["engine_requests_running"] == 3
    assert got["engine_requests_waiting"] == 2
    assert got["engine_tokens_given"] == 70
    assert got["engine_prefix_hit_ratio"] == 0.5
    assert got["engine_kv_tokens_used"] == 90
    metrics.sample([])
    assert values(metrics.export("local"), endpoint_name="local")["engine_requests_running"] == 0


def test_engines_of_several_processes_are_added_up_and_their_shares_are_not(tmp_path):
    program = (
        "from aiquery_serving.rest.metrics import Metrics\n"
        "metrics, names = Metrics(shared=True), {'endpoint': 'local', 'served_entity': 'tiny'}\n"
        "numbers = dict.fromkeys(('waiting', 'completion_tokens', 'kv_tokens_used'), 0)\n"
        "metrics.sample([{**names, **numbers, 'running': 3, 'prefix_hit_rate': 0.75}])\n"
        "print(metrics.export_all().decode())"
    )
    around = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", program], env=around, capture_output=True, text=True, check=True)
    got = values(done.stdout, endpoint_name="local")
    assert (got["engine_requests_running"], got["engine_prefix_hit_ratio"]) == (6, 0.75)


def test_requests_under_way_are_a_gauge():
    metrics, first, second = Metrics(), exchange(), exchange()
    metrics.asked(first)
    metrics.asked(second)
    metrics.ended(first)
    assert values(metrics.export("chat"))["requests_in_flight"] == 1
    metrics.ended(second)
    assert values(metrics.export("chat"))["requests_in_flight"] == 0


def test_an_export_of_an_endpoint_is_of_that_one_alone():
    metrics = counted(exchange("chat"), exchange("other"), exchange("", ""))
    metrics.sample()
    text = metrics.export("chat").decode()
    assert "other" not in text
    assert 'endpoint_name=""' not in text
    assert {"cpu_usage_percentage", "mem_usage_percentage"} <= values(text).keys()
    assert {'endpoint_name="chat"', 'endpoint_name="other"', 'endpoint_name=""'} <= {
        part for line in metrics.export_all().decode().splitlines() for part in line.replace("{", ",").split(",")
    }
    assert "endpoint_name" not in metrics.export("unknown").decode()


def test_tokens_are_counted_of_every_invocation():
    metrics = Metrics()
    for status in ("ok", "ok", "ModelError"):
        metrics.invoked(Invocation("chat", "gpt", 1, 0, 5.0, 1, 4, 2 if status == "ok" else 0, status, 1, "ada"))
    got = values(metrics.export("chat"), endpoint_name="chat", served_entity_name="gpt")
    assert (got["prompt_tokens_total"], got["completion_tokens_total"]) == (12, 4)


def test_the_process_uses_some_of_the_machine():
    metrics = Metrics()
    sum(number * number for number in range(300_000))
    metrics.sample()
    got = values(metrics.export_all())
    assert 0 < got["cpu_usage_percentage"] <= 100
    assert 0 < got["mem_usage_percentage"] < 100


def test_two_servers_of_a_process_count_apart():
    first, second = counted(exchange()), counted()
    assert "chat" in first.export_all().decode()
    assert "chat" not in second.export_all().decode()


def test_a_server_exports_what_it_was_asked(workspace):
    with serve(workspace) as server:
        for _ in range(3):
            httpx.post(f"{server.url}/serving-endpoints/chat/invocations", json=HELLO)
        httpx.post(f"{server.url}/serving-endpoints/embeddings/invocations", json={"input": ["a"]})
        httpx.post(f"{server.url}/serving-endpoints/chat/invocations", json={"messages": 1})
        reply = httpx.get(f"{server.url}/api/2.0/serving-endpoints/chat/metrics")
        everything = httpx.get(f"{server.url}/metrics").text
    assert reply.headers["content-type"].startswith("text/plain")
    got = values(reply.text, endpoint_name="chat", served_entity_name="gpt-4o")
    assert got["request_count_total"] == 3
    assert got["prompt_tokens_total"] == 6
    refused = values(reply.text, endpoint_name="chat", served_entity_name="")
    assert refused["request_4xx_count_total"] == 1
    assert "embeddings" not in reply.text
    assert values(everything, endpoint_name="embeddings")["request_count_total"] == 1


def test_who_may_see_what_was_counted(workspace):
    access = workspace.access
    tokens = {name: access.create_token(name, by=workspace.user)[0] for name in (workspace.user, "bob", "eve")}
    viewer = {"user_name": "bob", "permission_level": "CAN_VIEW"}
    endpoint_id = workspace.get_endpoint("chat")["id"]
    workspace.control.permissions_update(
        access.principal(workspace.user), endpoint_id, {"access_control_list": [viewer]}
    )
    with serve(workspace, tokens_only=True) as server:

        def status(name, path):
            return httpx.get(server.url + path, headers={"authorization": f"Bearer {tokens[name]}"}).status_code

        one = "/api/2.0/serving-endpoints/chat/metrics"
        assert {name: (status(name, "/metrics"), status(name, one)) for name in tokens} == {
            workspace.user: (200, 200),
            "bob": (403, 200),
            "eve": (403, 403),
        }
        assert httpx.get(server.url + "/metrics").status_code == 401
