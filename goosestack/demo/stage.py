"""What `goosestack serve --demo` plays on: the upstream and a Stripe with play money around the real daemon, and what
is printed to begin with. Settings are given as the names and values of `config.Config`.
"""

from __future__ import annotations

import importlib.util
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from goosestack.demo.server import make_app, start

Settings = dict[str, Any]


@asynccontextmanager
async def upstream() -> AsyncIterator[Settings]:
    """The upstream, at a pace that can be watched: the settings that ask there."""
    runner, port = await start(make_app(openai_key="sk-demo", anthropic_key="sk-ant-demo", chunk_delay_s=0.03))
    try:
        yield {
            "openai_api_key": "sk-demo",
            "openai_base_url": f"http://127.0.0.1:{port}/v1",
            "anthropic_api_key": "sk-ant-demo",
            "anthropic_base_url": f"http://127.0.0.1:{port}",
        }
    finally:
        await runner.cleanup()


@asynccontextmanager
async def till(public_url: str | None, gateway_port: int) -> AsyncIterator[tuple[Settings, Callable[[str], None]]]:
    """A Stripe: the settings that sell there, and who is told where its events go. Nothing is sold where Stripe's
    library is not installed."""
    if importlib.util.find_spec("stripe") is None:
        yield {"stripe_secret_key": None}, lambda url: None
        return
    from goosestack.demo import stripe

    key, secret = f"sk_test_{secrets.token_hex(16)}", f"whsec_{secrets.token_hex(16)}"
    made = stripe.Till(secret_key=key, webhook_url=None, webhook_secret=secret)
    runner, port = await stripe.start(made)
    home = public_url or f"http://127.0.0.1:{gateway_port or port}"
    sells = {
        "stripe_secret_key": key,
        "stripe_webhook_secret": (secret,),
        "stripe_pro_price_id": None,
        "stripe_api_base": f"http://127.0.0.1:{port}",
        "checkout_success_url": home,
        "checkout_cancel_url": home,
        "portal_return_url": home,
    }
    try:
        yield sells, lambda url: made.send_webhooks_to(url, secret)
    finally:
        await runner.cleanup()


def welcome(address: str, key: str, *, sells: bool) -> str:
    """What is printed: commands to paste."""
    chat = '{"model":"gpt-5.4-mini","messages":[{"role":"user","content":"Hello"}]%s}'
    responses = '{"model":"gpt-5.4-mini","input":"Hello"%s}'
    messages = '{"model":"claude-haiku-4-5","max_tokens":200,"messages":[{"role":"user","content":"Hello"}]%s}'
    stream = ',"stream":true'

    def curl(path: str, body: str) -> str:
        return (
            f"curl -N {address}{path} -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' -d '{body}'"
        )

    buy = f"""
Buy credits with play money, or Pro: open the url of the answer, pay there, and look at what it cost again.

  {curl("/billing/checkout", '{"type":"credits","amount":1000}')}
  {curl("/billing/checkout", '{"type":"pro"}')}
"""
    return f"""
GooseStack is running at {address}, as a demo: every answer is canned, and comes from a built-in upstream, not from a
model. No account is used anywhere; the database is thrown away at the end.

Your key, with $10.00 of play money:

  {key}

OpenAI chat, plain and streamed:

  {curl("/v1/chat/completions", chat % "")}
  {curl("/v1/chat/completions", chat % stream)}

OpenAI responses, plain and streamed:

  {curl("/v1/responses", responses % "")}
  {curl("/v1/responses", responses % stream)}

OpenAI embeddings:

  {curl("/v1/embeddings", '{"model":"text-embedding-3-small","input":"Hello"}')}

Anthropic messages, plain and streamed:

  {curl("/v1/messages", messages % "")}
  {curl("/v1/messages", messages % stream)}

What it cost:

  curl {address}/v1/usage -H 'Authorization: Bearer {key}'
{buy if sells else ""}
OpenAI SDK:      export OPENAI_BASE_URL={address}/v1 OPENAI_API_KEY={key}
Anthropic SDK:   export ANTHROPIC_BASE_URL={address} ANTHROPIC_API_KEY={key}
Claude Code:     export ANTHROPIC_BASE_URL={address} ANTHROPIC_AUTH_TOKEN={key}
Codex:           export GOOSESTACK_API_KEY={key}
                 codex -c model_provider=goosestack -c model_providers.goosestack.name=GooseStack \\
                   -c model_providers.goosestack.base_url={address}/v1 \\
                   -c model_providers.goosestack.env_key=GOOSESTACK_API_KEY \\
                   -c model_providers.goosestack.wire_api=responses -m gpt-5.5

Stop with Ctrl-C.
"""
