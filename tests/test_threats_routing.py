"""Mallory tries to send requests elsewhere: by the body, by headers, by redirects, by URLs, by the environment.

Where a request goes, and with whose key, is decided by the operator's configuration and by the model's name alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from goosestack import __version__
from tests.asking import directed
from tests.mallory import CHAT, COUNT, EMBEDDINGS, MESSAGES, RESPONSES, WIRES, Mallory, Trap, asks
from tests.world import ANTHROPIC_KEY, OPENAI_KEY, Daemon, Upstream, World

ROUTING_KEYS = """api_base api_key api_type api_version base_url custom_llm_provider deployment_id extra_body
    extra_headers extra_query fallbacks litellm_params mock_response model_list models organization plugins provider
    route router transforms""".split()


@pytest.fixture
def mallory(world: World) -> Iterator[Mallory]:
    with Mallory(world) as mallory:
        yield mallory


@pytest.fixture
def trap() -> Iterator[Trap]:
    with Trap() as trap:
        yield trap
        assert not trap.touched


# --- the body -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", WIRES)
def test_no_field_of_the_body_chooses_another_upstream_or_credential(mallory: Mallory, trap: Trap, path: str) -> None:
    for name in ROUTING_KEYS:
        elsewhere: list[object] = [trap.url, {"api_base": trap.url}, [{"base_url": trap.url, "api_key": "sk-evil"}]]
        for value in elsewhere:
            for routed in ({name: value}, {"metadata": {name: value}}, {"metadata": {"user_id": "a", name: value}}):
                reply = mallory.refused(400, path, asks(path, **routed))
                assert name in reply.message
                assert trap.url not in reply.message
    mallory.nothing_happened()


def test_what_is_hidden_deeper_in_the_body_goes_to_the_provider_as_it_is_and_routes_nothing(
    mallory: Mallory, trap: Trap
) -> None:
    deep = {"type": "json_object", "api_base": trap.url, "extra_body": {"base_url": trap.url}}
    reply = mallory.ask(CHAT, asks(CHAT, response_format=deep))
    assert reply.status == 200
    (sent,) = mallory.dispatched()
    assert sent["body"]["response_format"] == deep
    assert sent["headers"]["authorization"] == f"Bearer {OPENAI_KEY}"


# --- headers --------------------------------------------------------------------------------------------------

HOSTILE_HEADERS = """x-provider-base-url x-portkey-custom-host x-portkey-provider x-portkey-config x-base-url x-api-base
    x-target-url x-upstream x-upstream-url x-original-url x-rewrite-url x-forwarded-host x-forwarded-server
    x-forwarded-proto x-forwarded-port x-host x-http-host-override forwarded x-real-ip x-litellm-api-base
    x-litellm-model-id helicone-target-url helicone-openai-api-base openai-organization openai-project openai-beta
    cf-aig-authorization x-goog-api-key api-key proxy-authorization x-amz-security-token x-openrouter-provider
    http-referer x-title referer origin x-http-method-override x-stainless-lang idempotency-key
    accept-language""".split()


@pytest.mark.parametrize("path", WIRES)
def test_of_the_callers_headers_nothing_reaches_the_provider(mallory: Mallory, trap: Trap, path: str) -> None:
    hostile = {
        **dict.fromkeys(HOSTILE_HEADERS, trap.url),
        "host": f"127.0.0.1:{trap.port}",
        "cookie": "session=canary",
        "accept": "text/html",
        "accept-encoding": "gzip, br",
        "user-agent": "evil/1.0",
        "te": "trailers",
        "connection": "keep-alive, x-provider-key",
        "range": "bytes=0-1",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "anthropic-dangerous-direct-browser-access": "true",
    }
    reply = mallory.ask(path, asks(path), hostile)
    assert reply.status == 200, reply.body
    (sent,) = mallory.dispatched()
    headers = sent["headers"]
    expected = {
        "host": mallory.world.upstream.url.removeprefix("http://"),
        "content-type": "application/json",
        "accept-encoding": "identity",
        "user-agent": f"goosestack/{__version__}",
        "content-length": headers["content-length"],
    }
    if path in (MESSAGES, COUNT):
        own = {"anthropic-version": "2023-06-01", "anthropic-dangerous-direct-browser-access": "true"}
        expected |= {"x-api-key": ANTHROPIC_KEY, **own}
    else:
        expected["authorization"] = f"Bearer {OPENAI_KEY}"
    assert headers == expected
    assert sent["query"] == ""


def test_anthropics_own_headers_pass_but_for_those_that_reach_into_the_operators_account(mallory: Mallory) -> None:
    passing = {
        "anthropic-version": "2026-10-21",
        "anthropic-beta": "interleaved-thinking-2025-05-14,context-1m-2025-08-07",
        "anthropic-client-name": "agent",
    }
    stripped = {"anthropic-workspace-id": "wrkspc_evil", "anthropic-organization-id": "org-evil"}
    assert mallory.ask(MESSAGES, asks(MESSAGES), {**passing, **stripped}).status == 200
    (sent,) = mallory.dispatched()
    assert {name: value for name, value in sent["headers"].items() if name.startswith("anthropic-")} == passing


REFUSED_BETAS = """advisor-2026-03-01 code-execution-2025-08-25 compact-2026-01-12 fallback-2026-07-01
    files-api-2025-04-14 mcp-client-2025-11-20 mcp-servers-2025-12-04 message-batches-2024-09-24 skills-2025-10-02
    tool-search-tool-2025-10-19 web-fetch-2025-09-10""".split()


@pytest.mark.parametrize("path", [MESSAGES, COUNT])
def test_a_beta_that_unbounds_the_cost_is_refused_however_it_is_written(mallory: Mallory, path: str) -> None:
    for beta in REFUSED_BETAS:
        for value in (beta, beta.upper(), f"context-1m-2025-08-07, {beta}", f" ,{beta},", f"{beta};q=1"):
            reply = mallory.refused(400, path, asks(path), {"anthropic-beta": value})
            assert "anthropic-beta" in reply.message
        twice = [("anthropic-beta", "context-1m-2025-08-07"), ("anthropic-beta", beta)]
        assert "anthropic-beta" in mallory.refused(400, path, asks(path), twice).message
    mallory.nothing_happened()


@pytest.mark.parametrize("value", ["caf\xe9", "a\tb", "\x80", "x" * 8193])
def test_an_anthropic_header_that_is_no_printable_text_is_refused(mallory: Mallory, value: str) -> None:
    for name in ("anthropic-version", "anthropic-beta", "anthropic-whatever"):
        assert name in mallory.refused(400, MESSAGES, asks(MESSAGES), {name: value}).message
    mallory.nothing_happened()


# --- redirects ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES])
def test_a_redirect_of_the_provider_is_not_followed_and_costs_nothing(
    mallory: Mallory, trap: Trap, path: str, status: int
) -> None:
    elsewhere = {"location": f"{trap.url}/latest/meta-data/iam"}
    for stream in (False, True):
        reply = mallory.refused(502, path, asks(path, directed("Go", status=status, headers=elsewhere), stream=stream))
        assert trap.url not in reply.message
    rows = mallory.world.ended_rows(mallory.customer, 2)
    assert {(row["status"], row["cost_nanos"], row["reason"]) for row in rows} == {("released", 0, f"refused_{status}")}
    assert len(mallory.dispatched()) == 2


# --- URLs of images and files ---------------------------------------------------------------------------------

PRIVATE_URLS = """http://images.example.com/a.png file:///etc/passwd ftp://images.example.com/a.png
    gopher://images.example.com/ javascript:alert(1) //images.example.com/a.png images.example.com/a.png
    https:///a.png https://localhost/a.png https://intranet/a.png https://127.0.0.1/a.png https://127.1/a.png
    https://2130706433/a.png https://0x7f000001/a.png https://0x7f.0.0.1/a.png https://0177.0.0.1/a.png
    https://169.254.169.254/latest/meta-data https://10.0.0.1/a.png https://[::1]/a.png https://[::ffff:127.0.0.1]/a
    https://[fd00:ec2::254]/latest https://127.0.0.1./a.png https://127.0.0.1:443/a.png https://metadata.google.internal/
    https://printer.local/a.png https://db.internal/a.png https://nas.lan/a https://a.localhost/ https://x.home.arpa/
    https://example.com\\@127.0.0.1/a.png https://１２７.0.0.1/a.png https://ⓛocalhost/ data:,hello
    data:image/png;base64""".split()
PRIVATE_URLS += [
    "",
    " https://images.example.com/a.png",
    "https://images.example.com/a b.png",
    "https://a.example.com\n",
]


def _with_image(path: str, url: object) -> dict[str, object]:
    if path == CHAT:
        part: dict[str, object] = {"type": "image_url", "image_url": {"url": url}}
        return asks(path, messages=[{"role": "user", "content": [part]}])
    if path == RESPONSES:
        content: list[object] = [{"type": "input_image", "image_url": url}]
        return asks(path, input=[{"role": "user", "content": content}])
    block = {"type": "image", "source": {"type": "url", "url": url}}
    return asks(path, messages=[{"role": "user", "content": [block]}])


@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES])
def test_an_image_that_lies_nowhere_public_is_refused(mallory: Mallory, trap: Trap, path: str) -> None:
    others: list[object] = [None, 5, ["https://images.example.com/a.png"], {"url": "https://images.example.com/a.png"}]
    pages = [] if path == MESSAGES else ["data:text/html;base64,PGI+", "data:application/pdf;base64,JVBERi0="]
    for url in [*PRIVATE_URLS, trap.url, trap.url.replace("http:", "https:"), *others, *pages]:
        mallory.refused(400, path, _with_image(path, url))
    mallory.nothing_happened()


@pytest.mark.parametrize("path", [RESPONSES, MESSAGES])
def test_so_is_a_document(mallory: Mallory, trap: Trap, path: str) -> None:
    for url in [*PRIVATE_URLS, trap.url]:
        if path == RESPONSES:
            mallory.refused(
                400, path, asks(path, input=[{"role": "user", "content": [{"type": "input_file", "file_url": url}]}])
            )
        else:
            block = {"type": "document", "source": {"type": "url", "url": url}}
            inside = {"type": "tool_result", "tool_use_id": "a", "content": [block]}
            for content in ([block], [inside]):
                mallory.refused(400, path, asks(path, messages=[{"role": "user", "content": content}]))
    mallory.nothing_happened()


@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES])
def test_a_public_image_is_left_to_the_provider_to_fetch(mallory: Mallory, path: str) -> None:
    url = "https://images.example.com/a.png?signature=b"
    assert mallory.ask(path, _with_image(path, url)).status == 200
    (sent,) = mallory.dispatched()
    asked = sent["body"].get("messages", sent["body"].get("input"))
    assert asked == (_with_image(path, url).get("messages") or _with_image(path, url)["input"])


# --- the environment, and a provider that is not there ----------------------------------------------------------


@pytest.fixture
def proxied_world(folder: Path, trap: Trap) -> Iterator[World]:
    """A daemon without an OpenAI key, with a router, among proxy variables and a `.netrc` that lead to a trap."""
    (folder / ".netrc").write_text("machine 127.0.0.1 login evil password sk-netrc-canary\n")
    names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    proxies = dict.fromkeys([*names, *(name.lower() for name in names)], trap.url)
    upstream = Upstream(folder)
    router = {"OPENROUTER_API_KEY": OPENAI_KEY, "OPENROUTER_BASE_URL": f"{upstream.url}/v1"}
    home = {"HOME": str(folder), "NETRC": str(folder / ".netrc")}
    world = World(folder, upstream, Daemon(folder, upstream.url, OPENAI_API_KEY="", **proxies, **router, **home))
    yield world
    world.close()


def test_neither_a_proxy_variable_nor_an_unset_key_nor_a_router_leads_astray(proxied_world: World) -> None:
    with Mallory(proxied_world) as mallory:
        assert mallory.ask(MESSAGES, asks(MESSAGES)).status == 200
        (sent,) = mallory.dispatched()
        assert sent["headers"]["x-api-key"] == ANTHROPIC_KEY
        for path in (CHAT, RESPONSES, EMBEDDINGS):  # no key of the operator's, so the caller's is not sent instead
            mallory.refused(404, path, asks(path))
        for name in ("provider_order", "X-Route", "api_base", "safe_prompt", "min_p"):  # a router could obey these
            mallory.refused(400, CHAT, asks(CHAT, model="openai/gpt-4o-mini", **{name: "x"}))
        assert len(mallory.dispatched()) == 1
        assert mallory.ask(CHAT, asks(CHAT, model="openai/gpt-4o-mini")).status == 200
        assert mallory.dispatched()[-1]["headers"]["authorization"] == f"Bearer {OPENAI_KEY}"
        assert len(mallory.world.rows(mallory.customer)) == 2
