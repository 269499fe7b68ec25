"""What is asked and what the upstream answers: the same bytes for every candidate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

KINDS = ("plain", "stream")
CHUNKS = 60  # events of the canned stream, [DONE] not counted
MODEL = "gpt-5.4-mini"
MIME = {"plain": "application/json", "stream": "text/event-stream"}


def chat_request(*, stream: bool, max_tokens: int = 100) -> bytes:
    """A chat completion request of 1,024 bytes."""
    messages = [{"role": "system", "content": "You answer briefly."}, {"role": "user"}]
    body: dict[str, Any] = {"model": MODEL, "messages": messages, "max_tokens": max_tokens}
    if stream:
        body["stream"] = True
    messages[1]["content"] = ""
    words = "How many geese does it take to guard a capitol at night, and what do they eat? "
    messages[1]["content"] = (words * 20)[: 1024 - len(json.dumps(body))]
    return json.dumps(body).encode()


def usage(completion_tokens: int) -> dict[str, Any]:
    """What the upstream says it used: 230 tokens read, `completion_tokens` written."""
    return {
        "prompt_tokens": 230,
        "completion_tokens": completion_tokens,
        "total_tokens": 230 + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }


def event(text: str = "", *, finish: str | None = None, used: int | None = None) -> bytes:
    """One server-sent event of a chat stream: a piece of text, the end, or the usage."""
    chunk: dict[str, Any] = {
        "id": "chatcmpl-BenchBenchBenchBenchBenchBen",
        "object": "chat.completion.chunk",
        "created": 1_750_000_000,
        "model": f"{MODEL}-2026-03-17",
        "service_tier": "default",
        "system_fingerprint": "fp_0123456789",
        "choices": [],
        "usage": None if used is None else usage(used),
    }
    if used is None:
        delta = {"content": text} if text else {}
        chunk["choices"] = [{"index": 0, "delta": delta, "finish_reason": finish}]
    return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"


def stream_end(tokens: int) -> bytes:
    """The last events of a stream that carried `tokens` tokens: the finish, the usage, [DONE]."""
    return event(finish="stop") + event(used=tokens) + b"data: [DONE]\n\n"


def canned(kind: str) -> bytes:
    """The upstream's answer: about 1 KB of JSON, or a stream of CHUNKS events."""
    if kind == "stream":
        return event(" goose") * (CHUNKS - 2) + stream_end(CHUNKS - 2)
    message = {"role": "assistant", "content": "Two geese. " * 40, "refusal": None}
    answer = {
        "id": "chatcmpl-BenchBenchBenchBenchBenchBen",
        "object": "chat.completion",
        "created": 1_750_000_000,
        "model": f"{MODEL}-2026-03-17",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": usage(60),
        "service_tier": "default",
    }
    return json.dumps(answer).encode()


# Prints one line of JSON: answers, microseconds of the run and of two percentiles, failures.
LUA = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer " .. os.getenv("BENCH_KEY")
wrk.body = io.open(os.getenv("BENCH_BODY")):read("*a")
done = function(summary, latency)
  local e = summary.errors
  local form = '\\n{"answers":%d,"us":%d,"p50":%d,"p99":%d,"refused":%d,"broken":%d}\\n'
  io.write(string.format(form, summary.requests, summary.duration, latency:percentile(50),
    latency:percentile(99), e.status, e.connect + e.read + e.write + e.timeout))
end
"""

NGINX = """
daemon off; master_process off; worker_rlimit_nofile 16384;
pid {work}/{name}.pid; error_log {work}/{name}.log error;
events {{ worker_connections 8192; }}
http {{
  access_log off; keepalive_requests 100000000; open_file_cache max=10;
  client_body_temp_path {work}/t1; proxy_temp_path {work}/t2; fastcgi_temp_path {work}/t3;
  uwsgi_temp_path {work}/t4; scgi_temp_path {work}/t5;
  upstream peer {{ server 127.0.0.1:{peer}; keepalive 256; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location = /health {{ return 200 ok; }}
    {locations}
  }}
}}
"""

# A static file answers POST with 405, and error_page turns that into the file. The SSI filter
# drops the Content-Length, so that streams come chunked, as they do from a provider.
CANNED = """
    location = /{kind}/v1/chat/completions {{ error_page 405 =200 /canned/{kind}; return 405; }}
    location = /canned/{kind} {{
      internal; alias {work}/{kind}.answer; types {{ }} default_type {mime};
      ssi {ssi}; ssi_types {mime};
    }}
"""
PROXY = """
    location / {
      proxy_pass http://peer; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_set_header Authorization "Bearer sk-bench"; proxy_buffering off;
    }
"""


def write_files(work: Path) -> None:
    """Puts the bodies of both kinds and wrk's script into a directory."""
    for kind in KINDS:
        (work / f"{kind}.request").write_bytes(chat_request(stream=kind == "stream"))
        (work / f"{kind}.answer").write_bytes(canned(kind))
    (work / "post.lua").write_text(LUA)


def nginx_config(work: Path, name: str, port: int, peer: int | None = None) -> Path:
    """Writes the configuration of the upstream or, where there is a peer's port, of a proxy."""
    answers = [CANNED.format(work=work, kind=k, mime=MIME[k], ssi="on" if k == "stream" else "off") for k in KINDS]
    locations = "".join(answers) if peer is None else PROXY
    values = {"work": work, "name": name, "port": port, "peer": peer or port}
    path = work / f"{name}.conf"
    path.write_text(NGINX.format(**values, locations=locations))
    return path
