"""The catalogue of what can go wrong, in the order in which errors win.

Each class is one failure: its HTTP status, the `type` that our own routes give it, the names that the two
vendors give it, and, as its docstring, the message that the caller reads (`{braces}` are filled from the
keyword arguments). Only `wire` knows the envelopes that these are put into.
"""

from __future__ import annotations

import inspect
from typing import ClassVar

PAYMENT = "payment_required"
"""The `type` of what is wrong with a voucher; its code is told in a header, too."""


class Problem(Exception):
    """Something went wrong."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "internal_error"
    openai: ClassVar[tuple[str, str | None]] = ("server_error", None)
    anthropic: ClassVar[str] = "api_error"
    retry: ClassVar[bool | None] = None
    """What `x-should-retry` tells an SDK; None leaves it to the SDK's own rule for the status."""

    def __init__(self, *, param: str | None = None, headers: dict[str, str] | None = None, **facts: object):
        self.param = param
        self.headers = dict(headers or {})
        self.facts = facts
        self.message = inspect.cleandoc(type(self).__doc__ or "").replace("\n", " ").format(**facts)
        super().__init__(self.message)
        if self.type == PAYMENT:
            self.headers["x-drain-error"] = str(self.openai[1])
        if self.retry is not None:
            self.headers.setdefault("x-should-retry", "true" if self.retry else "false")


class ShuttingDown(Problem):
    """The gateway is restarting; try again in a moment."""

    status, type = 503, "overloaded_error"
    openai, anthropic = ("service_unavailable_error", "server_is_overloaded"), "overloaded_error"


class Malformed(Problem):
    """This is not a request that can be read: HTTP/1.1, to the letter."""

    status, type = 400, "validation_error"
    openai, anthropic = ("invalid_request_error", None), "invalid_request_error"


class NotFound(Problem):
    """There is nothing at {path}."""

    status, type = 404, "not_found"
    openai, anthropic = ("invalid_request_error", "not_found"), "not_found_error"


class NotSold(Problem):
    """{path} is not sold here. This gateway sells chat completions, responses, embeddings and messages."""

    status, type = 404, "not_found"
    openai, anthropic = ("invalid_request_error", "not_found"), "not_found_error"


class MethodNotAllowed(Problem):
    """{method} is not possible on {path}; use {allow}."""

    status, type = 405, "method_not_allowed"
    openai, anthropic = ("invalid_request_error", "method_not_allowed"), "invalid_request_error"


class PreflightRefused(Problem):
    """A page may not ask so from a browser: not allowed is its {what}."""

    status, type = 400, "validation_error"
    openai, anthropic = ("invalid_request_error", "preflight_refused"), "invalid_request_error"


class HeadersTooLarge(Problem):
    """The request's headers are too large: at most {limit} bytes in 100 lines."""

    status, type = 431, "validation_error"
    openai, anthropic = ("invalid_request_error", None), "invalid_request_error"


class CredentialConflict(Problem):
    """Send one credential: `Authorization: Bearer` or `x-api-key`, once, or the same key in both."""

    status, type = 400, "validation_error"
    openai, anthropic = ("invalid_request_error", "credential_conflict"), "invalid_request_error"


class NotAuthenticated(Problem):
    """No valid API key or access token. Send it as `Authorization: Bearer ...` or `x-api-key: ...`."""

    status, type = 401, "authentication_error"
    openai, anthropic = ("invalid_request_error", "invalid_api_key"), "authentication_error"


class TokenExpired(Problem):
    """The access token has expired; get a new one and ask again."""

    status, type = 401, "authentication_error"
    openai, anthropic = ("invalid_request_error", "token_expired"), "authentication_error"


class SignInUnavailable(Problem):
    """The sign-in service cannot be asked whether the access token is good; try again in a moment."""

    status, type = 503, "overloaded_error"
    openai, anthropic = ("service_unavailable_error", "sign_in_unavailable"), "overloaded_error"


class VoucherRequired(Problem):
    """Payment required: send a voucher in `X-DRAIN-Voucher`. `GET /v1/docs` says how."""

    status, type = 402, "payment_required"
    openai, anthropic = ("payment_required", "voucher_required"), "billing_error"
    retry = False


class VoucherMalformed(Problem):
    """`X-DRAIN-Voucher` must be a JSON object of strings: channelId, amount, nonce, signature."""

    status, type = 402, "payment_required"
    openai, anthropic = ("payment_required", "invalid_voucher_format"), "billing_error"
    retry = False


class ChainUnknown(Problem):
    """The state of this payment channel cannot be read from the chain just now; nothing was sent, nothing charged."""

    status, type = 503, "overloaded_error"
    openai, anthropic = ("service_unavailable_error", "chain_unknown"), "overloaded_error"


class ChannelNotFound(Problem):
    """Payment validation failed: channel_not_found. The contract has no open channel with this id."""

    status, type = 402, "payment_required"
    openai, anthropic = ("payment_required", "channel_not_found"), "billing_error"
    retry = False


class WrongProvider(Problem):
    """Payment validation failed: wrong_provider. This channel pays somebody else."""

    status, type = 402, "payment_required"
    openai, anthropic = ("payment_required", "wrong_provider"), "billing_error"
    retry = False


class ChannelExpired(Problem):
    """Payment validation failed: channel_expired. It ends too soon to be claimed; open another."""

    status, type = 402, "payment_required"
    openai, anthropic = ("payment_required", "channel_expired"), "billing_error"
    retry = False


class ExceedsDeposit(Problem):
    """Payment validation failed: exceeds_deposit. The amount is more than the channel holds."""

    status, type = 402, "payment_required"
    openai, anthropic = ("payment_required", "exceeds_deposit"), "billing_error"
    retry = False


class ChannelTooSmall(Problem):
    """Payment validation failed: insufficient_funds. A channel must have a deposit of {least} micro-USDC at least."""

    status, type = 402, "payment_required"
    openai, anthropic = ("payment_required", "insufficient_funds"), "billing_error"
    retry = False


class VoucherSignature(Problem):
    """Payment validation failed: invalid_signature. It must be the consumer's own: 65 bytes, with a low s."""

    status, type = 402, "payment_required"
    openai, anthropic = ("payment_required", "invalid_signature"), "billing_error"
    retry = False


class ChannelClosing(Problem):
    """Payment validation failed: channel_closing. Its close has been signed; open another."""

    status, type = 402, "payment_required"
    openai, anthropic = ("payment_required", "channel_closing"), "billing_error"
    retry = False


class CloseRefused(Problem):
    """A close of this channel cannot be signed: {reason}"""

    status, type = 409, "channel_busy"
    openai, anthropic = ("invalid_request_error", "channel_busy"), "invalid_request_error"
    retry = False


class NotPermitted(Problem):
    """This needs the operator's token or a connection from the machine itself."""

    status, type = 403, "authorization_error"
    openai, anthropic = ("permission_error", "permission_denied"), "permission_error"


class SignupClosed(Problem):
    """Sign-up is closed here; ask the operator for a key, or send a valid key to add one to its account."""

    status, type = 403, "authorization_error"
    openai, anthropic = ("permission_error", "signup_closed"), "permission_error"


class NotPro(Problem):
    """`X-Provider-Key` (your own provider key) needs an active Pro plan, which this account has not."""

    status, type = 403, "authorization_error"
    openai, anthropic = ("permission_error", "pro_required"), "permission_error"


class RateLimited(Problem):
    """Too many requests: {limit} per {window_s} s. Try again in {retry_after} s."""

    status, type = 429, "rate_limit_error"
    openai, anthropic = ("rate_limit_error", "rate_limit_exceeded"), "rate_limit_error"


class TooManyInFlight(Problem):
    """Too many requests in flight: {limit} at once. Try again when one has ended."""

    status, type = 429, "rate_limit_error"
    openai, anthropic = ("rate_limit_error", "rate_limit_exceeded"), "rate_limit_error"


class UnsupportedMediaType(Problem):
    """The body must be `application/json`, unencoded (no Content-Encoding)."""

    status, type = 415, "validation_error"
    openai, anthropic = ("invalid_request_error", "unsupported_media_type"), "invalid_request_error"


class BodyTooLarge(Problem):
    """The body is larger than {limit} bytes."""

    status, type = 413, "validation_error"
    openai, anthropic = ("invalid_request_error", "request_too_large"), "request_too_large"
    retry = False


class Overloaded(Problem):
    """The gateway is holding as many requests as it can; try again in a moment."""

    status, type = 503, "overloaded_error"
    openai, anthropic = ("service_unavailable_error", "server_is_overloaded"), "overloaded_error"


class BodyNotRead(Problem):
    """The request body ended early or took too long."""

    status, type = 400, "validation_error"
    openai, anthropic = ("invalid_request_error", None), "invalid_request_error"


class Invalid(Problem):
    """{reason}"""

    status, type = 400, "validation_error"
    openai, anthropic = ("invalid_request_error", "invalid_value"), "invalid_request_error"


class Unsupported(Problem):
    """`{field}` is not possible through this gateway: {reason}"""

    status, type = 400, "validation_error"
    openai, anthropic = ("invalid_request_error", "unsupported_parameter"), "invalid_request_error"


class NotAccepted(Problem):
    """This was not accepted."""

    status, type = 400, "validation_error"
    openai, anthropic = ("invalid_request_error", None), "invalid_request_error"


class ModelNotFound(Problem):
    """The model `{model}` is not sold here{hint}. `GET /v1/models` lists what is."""

    status, type = 404, "not_found"
    openai, anthropic = ("invalid_request_error", "model_not_found"), "not_found_error"


class ModelNotInPlan(Problem):
    """Your plan ({plan}) does not include `{model}`. `GET /api/me` says which models it has."""

    status, type = 403, "authorization_error"
    openai, anthropic = ("permission_error", "model_not_in_plan"), "permission_error"


class QuotaExceeded(Problem):
    """Your plan's tokens do not suffice ({plan}: {quota} a month): this request needs up to {required}, and {available}
    are left. {affordable}The next are given at {reset}."""

    status, type = 429, "quota_exceeded"
    openai, anthropic = ("insufficient_quota", "quota_exceeded"), "rate_limit_error"
    retry = False


class CapReached(Problem):
    """The cap on what you spend beyond your plan does not suffice ({cap} a month): this request needs up to {required},
    and {available} is left. {affordable}The next month begins at {reset}."""

    status, type = 429, "quota_exceeded"
    openai, anthropic = ("insufficient_quota", "quota_exceeded"), "rate_limit_error"
    retry = False


class NotBillable(Problem):
    """What is spent beyond a plan is billed by Stripe, where this account is no customer yet. A checkout makes it one
    (`POST /billing/checkout`); else ask the operator."""

    status, type = 402, "insufficient_credits"
    openai, anthropic = ("insufficient_quota", "no_customer"), "billing_error"
    retry = False


class NothingPays(Problem):
    """Nothing of this account pays for requests here. `GET /api/me` says which plan it has, and which cap on what is
    spent beyond it."""

    status, type = 402, "insufficient_credits"
    openai, anthropic = ("insufficient_quota", "no_payer"), "billing_error"
    retry = False


class ModelNotSupported(Problem):
    """The model `{model}` is not sold here{hint}. `GET /v1/pricing` lists what is."""

    status, type = 400, "validation_error"
    openai, anthropic = ("invalid_request_error", "model_not_supported"), "invalid_request_error"


class InsufficientFunds(Problem):
    """Not enough credits: this request needs up to {required}, and {available} is available. {affordable}{where}"""

    status, type = 402, "insufficient_credits"
    openai, anthropic = ("insufficient_quota", "insufficient_balance"), "billing_error"
    retry = False


class InvalidNonce(Problem):
    """Payment validation failed: invalid_nonce. It was used before, or is not above the last one charged."""

    status, type = 402, "payment_required"
    openai, anthropic = ("payment_required", "invalid_nonce"), "billing_error"
    retry = False


class VoucherFunds(Problem):
    """Payment validation failed: insufficient_funds. This request needs {required} micro-USDC, and the voucher
    has {provided} left."""

    status, type = 402, "payment_required"
    openai, anthropic = ("payment_required", "insufficient_funds"), "billing_error"
    retry = False


class InDebt(Problem):
    """A payment of this account was taken back after its credits were spent: {debt} is owed, and nothing new is
    admitted. What is topped up pays that first. {where}"""

    status, type = 402, "insufficient_credits"
    openai, anthropic = ("insufficient_quota", "insufficient_balance"), "billing_error"
    retry = False


class NotForSale(Problem):
    """Nothing can be bought here: {reason}"""

    status, type = 503, "billing_unavailable"
    openai, anthropic = ("service_unavailable_error", "billing_unavailable"), "api_error"
    retry = False


class TillUnavailable(Problem):
    """The payment provider cannot be asked just now; nothing was charged. Try again in a moment."""

    status, type = 503, "billing_unavailable"
    openai, anthropic = ("service_unavailable_error", "billing_unavailable"), "api_error"


class StoreUnavailable(Problem):
    """The ledger is out of reach just now; nothing was sent and nothing was charged."""

    status, type = 503, "overloaded_error"
    openai, anthropic = ("service_unavailable_error", "server_is_overloaded"), "overloaded_error"


class OperatorProblem(Problem):
    """The provider is not available through this gateway just now; the operator has been told."""

    status, type = 503, "upstream_error"
    openai, anthropic = ("service_unavailable_error", "upstream_unavailable"), "api_error"


class UpstreamUnavailable(Problem):
    """The provider could not be reached or refused to answer ({detail}); nothing was charged."""

    status, type = 502, "upstream_error"
    openai, anthropic = ("server_error", "upstream_unavailable"), "api_error"


class UpstreamCut(Problem):
    """The provider's answer broke off ({detail}); what was received may have been charged."""

    status, type = 502, "upstream_error"
    openai, anthropic = ("server_error", "upstream_cut"), "api_error"
    retry = False


class UpstreamTimeout(Problem):
    """The provider did not finish within {deadline_s} s; the output that was held for it has been charged."""

    status, type = 504, "upstream_error"
    openai, anthropic = ("server_error", "upstream_timeout"), "timeout_error"
    retry = False


class Ended(Problem):
    """This request was ended: {reason}"""

    status, type = 403, "authorization_error"
    openai, anthropic = ("permission_error", "request_ended"), "permission_error"
    retry = False


class Internal(Problem):
    """Something went wrong here; the operator can find it by the request id."""

    status, type = 500, "internal_error"
    openai, anthropic = ("server_error", "internal_error"), "api_error"


class Refusal(Exception):
    """Start or a command is refused; the text is one sentence for the operator."""


class NotYet(Refusal):
    """Refused for what may pass by itself: trying again is worth it."""
