"""What DRAIN adds beside the paid routes: prices and a page that agents read, closes, and the operator's claims."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from goosestack import __version__, errors
from goosestack.api import MOST_BODY_BYTES, price_entry
from goosestack.drain import books, claims
from goosestack.drain.closing import Closer
from goosestack.drain.collecting import Collector
from goosestack.drain.paying import DOCS, PROTOCOL, Provider
from goosestack.drain.signing import checksum_address
from goosestack.drain.vouchers import parse_channel_id
from goosestack.gateway import Gateway, read_body
from goosestack.limits import RateLimit
from goosestack.store import Tx
from goosestack.wire import body as fields

CLOSES_PER_HOUR = 60
"""Of one address: each makes us ask the chain, and sign."""
MOST_DOCS_MODELS = 8


@dataclass(slots=True)
class Agents:
    """The endpoints, each a coroutine of a request."""

    gateway: Gateway
    provider: Provider
    collector: Collector
    closer: Closer
    name: str
    public_url: str | None
    admin_token: str | None
    closes: RateLimit

    # --- open to all ---

    async def root(self, request: Request) -> Response:
        """`GET /`, `/health`: liveness, name, version, whom channels pay."""
        facts = {"status": "ok", "name": "goosestack", "version": __version__}
        return JSONResponse({**facts, "provider": self.provider.address, "providerName": self.name})

    async def prices(self, request: Request) -> Response:
        """`GET /v1/pricing`: what a channel pays, in DRAIN's shape, with all classes and limits of ours beside."""
        await self._admit_stranger(request)
        gateway, today = self.gateway, self.gateway.now()[:10]
        models = {}
        for provider, model in gateway.upstreams.sold(today):
            sold, terms = self.provider.prices.of(model)
            read, written = self.provider.prices.published(model, today)
            models[model.id] = {
                "provider": provider.name,
                **price_entry(sold, terms, today),
                "inputPer1kTokens": read,
                "outputPer1kTokens": written,
                "credits": price_entry(model, gateway.policy.terms, today),
            }
        return JSONResponse(
            {
                "provider": self.provider.address,
                "providerName": self.name,
                "chainId": self.provider.domain.chain_id,
                "contract": checksum_address(self.provider.domain.contract),
                "currency": "USDC",
                "decimals": 6,
                "protocol": PROTOCOL,
                "feeBps": self.provider.contract.fee_bps,
                "minDeposit": str(self.provider.least_deposit),
                "minRemainingSeconds": self.provider.least_s,
                "generated": gateway.upstreams.book.generated,
                "models": models,
            }
        )

    async def docs(self, request: Request) -> Response:
        """`GET /v1/docs`: a page for an agent, of 800 to 2,500 characters."""
        await self._admit_stranger(request)
        return PlainTextResponse(self._docs())

    async def directory(self, request: Request) -> Response:
        """`GET /api/mcp/providers`: a marketplace with one provider, for clients that are given a directory's URL."""
        await self._admit_stranger(request)
        today = self.gateway.now()[:10]
        models = []
        for _, model in self.gateway.upstreams.sold(today):
            read, written = self.provider.prices.published(model, today)
            price = {"inputPer1kTokens": read, "outputPer1kTokens": written, "currency": "USDC", "decimals": 6}
            models.append({"id": model.id, "name": model.name, "pricing": price})
        url = self.public_url or str(request.base_url).rstrip("/")
        entry = {
            "id": self.provider.address.lower(),
            "name": self.name,
            "description": "Chat completions, responses, messages and embeddings, paid per request.",
            "apiUrl": url,
            "providerAddress": self.provider.address,
            "chainId": self.provider.domain.chain_id,
            "category": "llm",
            "protocol": "drain",
            "docsUrl": url + DOCS,
            "status": {"online": not self.provider.troubles, "lastChecked": self.gateway.now(), "latencyMs": 0},
            "models": models,
        }
        return JSONResponse({"providers": [entry]})

    async def close_channel(self, request: Request) -> Response:
        """`POST /v1/close-channel` `{"channelId"}`, and `"signature"` over the request where a consumer gives one."""
        await self.closes.hit(request.scope["state"]["address"])
        gateway = self.gateway
        raw = await read_body(gateway, request.scope, request.receive, MOST_BODY_BYTES)
        gateway.give_body("", len(raw))
        body = fields.parse(raw)
        try:
            channel_id = parse_channel_id(body.get("channelId"))
            proof = None if body.get("signature") is None else _signature(body.get("signature"))
        except (errors.VoucherMalformed, ValueError):
            raise errors.Invalid(reason="channelId required: 0x and 64 hexadecimal digits", param="channelId") from None
        close = await self.closer.close(channel_id, proof)
        return JSONResponse(
            {
                "channelId": "0x" + close.channel_id.hex(),
                "finalAmount": str(close.final_amount),
                "signature": "0x" + close.signature.hex(),
            }
        )

    async def _admit_stranger(self, request: Request) -> None:
        await self.gateway.strangers.hit(request.scope["state"]["address"])

    def _docs(self) -> str:
        provider, today = self.provider, self.gateway.now()[:10]
        sold = self.gateway.upstreams.sold(today)
        lines = []
        for _, model in sold[:MOST_DOCS_MODELS]:
            read, written = provider.prices.published(model, today)
            lines.append(page_line(model.id, read, written))
        return PAGE.format(
            name=self.name[:40],
            provider=provider.address,
            contract=checksum_address(provider.domain.contract),
            version=provider.contract.version,
            early=PAGE_CLOSE if provider.contract.version > 1 else "",
            chain=provider.domain.chain_id,
            deposit=provider.least_deposit,
            seconds=provider.least_s,
            count=len(sold),
            models="\n".join(lines),
        )

    # --- the operator's ---

    async def admin_claim(self, request: Request) -> Response:
        """`POST /v1/admin/claim[?force=true]`: claim what is due, or with force whatever is worth its gas."""
        self._operator(request)
        try:
            done = await self.claim(force=request.query_params.get("force") == "true")
        except errors.ChainUnknown:
            return JSONResponse({"success": False, "error": "chain_unknown"}, 500)
        return JSONResponse(done)

    async def admin_stats(self, request: Request) -> Response:
        """`GET /v1/admin/stats`."""
        self._operator(request)
        return JSONResponse(await self.status())

    async def admin_vouchers(self, request: Request) -> Response:
        """`GET /v1/admin/vouchers`: the highest voucher of each channel that has something to claim."""
        self._operator(request)
        found = await self.gateway.store.read(_unclaimed, self.provider)
        return JSONResponse({"provider": self.provider.address, "unclaimedCount": len(found), "channels": found})

    async def claim(self, *, force: bool) -> dict[str, Any]:
        """Send what is due; what has to wait for its turn on the chain follows by itself."""
        if force:
            await self.collector.force()
        sent = await self.collector.turn()
        return {
            "success": True,
            "claimed": len(sent),
            "transactions": ["0x" + each.hex() for each in sent],
            "forced": force,
            "waiting": len(self.collector.forced) - len(sent) if force else 0,
        }

    async def status(self) -> dict[str, Any]:
        """How much there is, in DRAIN's shape, and why no voucher is taken, where that is so."""
        found = await self.gateway.store.read(claims.counts, self.provider.domain)
        return {
            "provider": self.provider.address,
            "providerName": self.name,
            "chainId": self.provider.domain.chain_id,
            "totalVouchers": found["vouchers"],
            "unclaimedVouchers": found["unclaimed"],
            "activeChannels": found["channels"],
            "totalEarned": _usdc(found["earned"]),
            "claimThreshold": _usdc(self.collector.threshold),
            "feeBps": self.provider.contract.fee_bps,
            "termsAreFinal": self.provider.contract.renounced,
            "troubles": sorted(self.provider.troubles.values()),
        }

    async def channels(self) -> list[dict[str, object]]:
        """Every open channel."""
        return await self.gateway.store.read(claims.shown, self.provider.domain)

    def _operator(self, request: Request) -> None:
        """Raise NotFound unless the request bears the operator's token: where there is none, there is nothing."""
        if self.admin_token is None:
            raise errors.NotFound(path=request.url.path)
        sent = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(sent.encode(), self.admin_token.encode()):
            raise errors.NotPermitted()


PAGE = """# {name}: LLM answers, paid per request from a DRAIN channel

Provider: {provider}
Contract: {contract} (DRAIN V{version}), chain {chain}, USDC (6 decimals)

1. Open a channel: approve USDC to the contract, then open(address provider, uint256 amount, uint256 duration_s), with
   {deposit} micro-USDC or more. It is served until {seconds} s before its expiry.
2. Send each request with the header X-DRAIN-Voucher:
   {{"channelId":"0x..","amount":"..","nonce":"..","signature":"0x.."}}
   amount is cumulative, in micro-USDC; nonce grows with each request; both are decimal strings. The signature is
   EIP-712, of domain name "DrainChannel", version "1", chainId {chain}, verifyingContract the contract, and of
   type Voucher(bytes32 channelId,uint256 amount,uint256 nonce).
3. What a voucher allows beyond the cost stays your credit. The output is capped to what it pays for.

Paths (OpenAI's and Anthropic's formats, plain or streamed): POST /v1/chat/completions, /v1/responses, /v1/embeddings,
/v1/messages.

Answers bear X-DRAIN-Cost, X-DRAIN-Total, X-DRAIN-Remaining (micro-USDC); streams bear them as comments at the end.
Errors are 402 with a code, also in X-DRAIN-Error. With insufficient_funds, sign X-DRAIN-Required minus
X-DRAIN-Provided more.
{early}
USDC per 1,000 tokens, some of {count} models (all: GET /v1/pricing):
{models}
"""

PAGE_CLOSE = """To end early: POST /v1/close-channel {"channelId":"0x.."}; the channel is then served no more.
"""


def page_line(model: str, read: str, written: str) -> str:
    """A model's line in the page: its prices of input and output."""
    return f"- {model[:40]}: {read} in, {written} out"


def _signature(value: object) -> bytes:
    if not isinstance(value, str) or not value.startswith("0x") or len(value) != 132:
        raise ValueError("a signature is 0x and 130 hexadecimal digits")
    return bytes.fromhex(value[2:])


def _usdc(micro: int) -> str:
    return f"{micro // 1_000_000}.{micro % 1_000_000:06d} USDC"


def _unclaimed(tx: Tx, provider: Provider) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    for each in books.open_channels(tx, provider.domain):
        voucher = claims.latest_voucher(tx, each.id)
        if voucher is not None and voucher[0] > each.claimed:
            amount, nonce, received = voucher
            found.append(
                {
                    "channelId": "0x" + each.channel_id.hex(),
                    "amount": _usdc(amount),
                    "amountRaw": str(amount),
                    "nonce": str(nonce),
                    "consumer": checksum_address(each.consumer),
                    "claimed": each.charged <= each.claimed,
                    "chargedRaw": str(each.charged),
                    "claimedRaw": str(each.claimed),
                    "receivedAt": received,
                }
            )
    return found
