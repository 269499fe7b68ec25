"""The catalogue of faults: every way in which the demo upstream can be told to fail."""

from __future__ import annotations

from dataclasses import dataclass

from goosestack.demo.strict import Refusal

FAULT_TEXTS: dict[str, str] = {
    "reset_before_headers": "the connection is reset (RST) once the request was read",
    "close_before_headers": "the connection is closed (FIN) once the request was read",
    "reset": "the connection is reset (RST) in the middle of the answer",
    "eof": "a clean end in the middle: valid framing, no terminal frame, half of a JSON body",
    "short_length": "Content-Length promises more bytes than are sent before the close",
    "half_json": "a frame or body is cut in the middle of its JSON, then the connection closes",
    "bad_json": "a 200 whose body, or one frame of it, is not JSON",
    "bad_utf8": "a 200 whose body, or one frame of it, is not UTF-8",
    "no_object": "a 200 whose body, or one frame of it, is JSON but no object",
    "nested": "a 200 whose body, or one frame of it, is JSON nested 100,000 levels deep",
    "html": "a 200 with a web page",
    "wrong_content_type": "the right answer under the wrong content type",
    "empty": "a 200 with an empty body",
    "no_content": "a 204, which has no body",
    "not_http": "a greeting in another protocol, then the connection closes",
    "bad_chunk": "a chunk in the middle of the answer whose length is no number",
    "two_lengths": "two Content-Length headers that differ",
    "early_hints": "1,000 provisional answers (103), then the right one",
    "second_answer": "the right answer, and after `hang_s` another on its connection, which nobody asked for",
    "redirect": "a 307 to the directive's `location`",
    "error_200": "the vendor's error with the status 200, as routers give it",
    "error_400": "the vendor's error 400",
    "error_401": "the vendor's error 401, quoting the key it received",
    "error_402": "the vendor's error 402",
    "error_403": "the vendor's error 403",
    "error_404": "the vendor's error 404: no such model",
    "error_408": "the vendor's error 408",
    "error_413": "the vendor's error 413",
    "error_422": "the vendor's error 422",
    "error_429": "the vendor's error 429: rate limit, with retry-after",
    "error_quota": "the vendor's error 429: the operator's account is exhausted",
    "error_low_credit": "Anthropic's error 400: the operator's credit balance is too low",
    "error_500": "the vendor's error 500",
    "error_502": "the vendor's error 502",
    "error_503": "the vendor's error 503",
    "error_529": "the vendor's error 529: overloaded",
    "error_frame": "the vendor's error event in the middle of a stream, which then ends",
    "failed": "a response that ends with response.failed, usage included",
    "stall_headers": "no answer for `hang_s` seconds, then the connection closes",
    "stall": "the answer stops in the middle for `hang_s` seconds, then the connection closes",
    "drip": "one byte every 0.2 s, or every `delay_ms`",
    "endless_line": "a line that never ends (up to 256 MB)",
    "endless_body": "a body that never ends (up to 256 MB)",
    "gzip_bomb": "a small gzip body that unpacks to 256 MB",
    "huge_header": "one response header of 200 KB",
    "many_headers": "5,000 response headers",
    "crlf": "lines end with CR LF",
    "byte_by_byte": "every byte is a write of its own",
    "coalesced": "all frames in one write",
    "comments": "comments, and pings where the vendor has them, between the frames",
    "after_terminal": "more frames after the terminal one, with twice the usage",
    "no_done": "everything but the last frame",
}

FAULTS: tuple[str, ...] = tuple(FAULT_TEXTS)

STREAM_ONLY = {
    "error_frame",
    "failed",
    "crlf",
    "coalesced",
    "comments",
    "after_terminal",
    "no_done",
}


def fits(fault: str | None, wire: str, stream: bool) -> bool:
    """Whether a fault makes sense on a wire format (`chat`, `responses`, `embeddings`,
    `messages`, `count_tokens`), streamed or not."""
    if fault is None:
        return True
    if fault in STREAM_ONLY and not stream:
        return False
    if fault == "failed":
        return wire == "responses"
    if fault == "error_low_credit":
        return wire in ("messages", "count_tokens")
    return fault in FAULT_TEXTS


@dataclass(frozen=True)
class VendorError:
    """One kind of failure as each vendor names it."""

    status: int
    openai_type: str
    openai_code: str | None
    anthropic_type: str
    text: str


ERRORS: dict[str, VendorError] = {
    "error_200": VendorError(200, "server_error", "server_error", "api_error", "The provider had an error."),
    "error_400": VendorError(400, "invalid_request_error", None, "invalid_request_error", "The request was invalid."),
    "error_401": VendorError(
        401,
        "invalid_request_error",
        "invalid_api_key",
        "authentication_error",
        "Incorrect API key provided.",
    ),
    "error_402": VendorError(
        402,
        "insufficient_quota",
        "billing_hard_limit_reached",
        "billing_error",
        "The account has an unpaid balance.",
    ),
    "error_403": VendorError(
        403,
        "invalid_request_error",
        "model_access_denied",
        "permission_error",
        "The project has no access to this model.",
    ),
    "error_404": VendorError(
        404,
        "invalid_request_error",
        "model_not_found",
        "not_found_error",
        "The model does not exist.",
    ),
    "error_408": VendorError(408, "server_error", "request_timeout", "timeout_error", "The request timed out."),
    "error_413": VendorError(
        413,
        "invalid_request_error",
        "request_too_large",
        "request_too_large",
        "The request exceeds the maximum size.",
    ),
    "error_422": VendorError(
        422,
        "invalid_request_error",
        None,
        "invalid_request_error",
        "The request could not be processed.",
    ),
    "error_429": VendorError(
        429,
        "tokens",
        "rate_limit_exceeded",
        "rate_limit_error",
        "Rate limit reached: limit 30000 tokens per minute. Please try again in 2s.",
    ),
    "error_quota": VendorError(
        429,
        "insufficient_quota",
        "insufficient_quota",
        "rate_limit_error",
        "The current quota is exceeded; check the plan and billing details.",
    ),
    "error_low_credit": VendorError(
        400,
        "invalid_request_error",
        None,
        "invalid_request_error",
        "Your credit balance is too low to access the API.",
    ),
    "error_500": VendorError(500, "server_error", "server_error", "api_error", "The server had an error."),
    "error_502": VendorError(502, "server_error", "bad_gateway", "api_error", "Bad gateway."),
    "error_503": VendorError(
        503,
        "service_unavailable_error",
        "server_is_overloaded",
        "api_error",
        "The service is unavailable.",
    ),
    "error_529": VendorError(
        529,
        "service_unavailable_error",
        "server_is_overloaded",
        "overloaded_error",
        "Overloaded.",
    ),
}

OTHER_ERROR = VendorError(400, "invalid_request_error", None, "invalid_request_error", "The request failed.")


def failure(fault: str, vendor: str, key: str, status: int | None = None) -> Refusal:
    """The error that a vendor answers for a fault; it names the key and account it saw, as real
    ones do, so that whoever passes it on unread gives the operator away."""
    error = ERRORS.get(fault, OTHER_ERROR)
    code = error.openai_code
    if vendor == "anthropic":
        code = None
    details = None
    if fault == "error_quota" and vendor == "anthropic":
        details = {"error_code": "enforced_spend_limit_reached"}
    return Refusal(
        error.status if status is None else status,
        f"{error.text} (organization org-canaryORG123, project proj_canary, API key {key})",
        type=error.anthropic_type if vendor == "anthropic" else error.openai_type,
        code=code,
        details=details,
        headers={"retry-after": "2"} if fault in ("error_429", "error_503") else None,
    )
