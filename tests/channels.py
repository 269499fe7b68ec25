"""Dave at the gateway: a daemon that sells by vouchers, on the tests' chain, and a channel that he pays from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from goosestack.drain import abi
from goosestack.drain.signing import Signer
from goosestack.store.sqlite import connect_read_only
from tests.asking import Reply, ask, chat
from tests.chain.control import DOLLAR, LocalChain, voucher_header
from tests.chain.places import DAVE, PROVIDER_KEY, V2
from tests.world import World

DEPTH = 2
PRICES = {"PRICE_GPT4OMINI_INPUT": "7500", "PRICE_GPT4OMINI_OUTPUT": "22500"}
ADMIN = "an-operators-token-of-32-bytes-or-more"
TERMS: Mapping[str, str] = {
    "DRAIN_CONFIRMATIONS": str(DEPTH),
    "DRAIN_CACHE_S": "0",
    "DRAIN_CLOSE_IDLE_S": "0",
    "CLAIM_LEAST_TIP_GWEI": "1",
    "CLAIM_GAS_PRICE": "0",
    **PRICES,
}
"""How channels are served, beside whose wallet it is and where the chain is."""


def open_market(folder: Path, chain: LocalChain, *, rpc: str | None = None, **settings: str) -> World:
    """A daemon whose wallet is the chain's provider."""
    given: dict[str, Any] = {
        "PROVIDER_PRIVATE_KEY": PROVIDER_KEY,
        "DRAIN_RPC_URL": chain.url("a") if rpc is None else rpc,
        "ADMIN_TOKEN": ADMIN,
        "DISCONNECT_GRACE_S": "1",
        "DRAIN_S": "5",
        **TERMS,
        **settings,
    }
    return World.create(folder, **given)


@dataclass
class Channel:
    """One channel, and what its consumer has signed so far."""

    world: World
    chain: LocalChain
    id: bytes
    consumer: Signer = DAVE
    amount: int = 0
    nonce: int = 0
    sent: list[str] = field(default_factory=list)

    @classmethod
    def open(cls, world: World, chain: LocalChain, deposit: int = 10 * DOLLAR, duration: int = 86_400) -> Channel:
        """A channel of Dave's, old enough to count."""
        channel_id = chain.open(deposit, duration)
        chain.mine(DEPTH)
        return cls(world, chain, channel_id)

    def voucher(self, more: int) -> str:
        """The next voucher, for so many micro-USDC more."""
        self.amount, self.nonce = self.amount + more, self.nonce + 1
        return voucher_header(self.id, self.amount, self.nonce, signer=self.consumer)

    def buy(self, more: int, body: object = None, path: str = "/v1/chat/completions") -> Reply:
        """Ask with the next voucher."""
        return spend(self.world, self.voucher(more), body, path)

    def lie(self, *, deposit: int = 10 * DOLLAR, claimed: int = 0) -> str:
        """A node's answer to getChannel with other amounts than the chain's."""
        channel = abi.read_channel(self.id, self.chain.ask(V2, abi.call(abi.GET_CHANNEL, self.id)))
        assert channel is not None
        people, amounts = (channel.consumer, channel.provider), (deposit, claimed, channel.expiry)
        return "0x" + b"".join([abi.word(each) for each in (*people, *amounts)]).hex()

    def row(self) -> dict[str, Any]:
        """What the books have of it, with its account."""
        return query(
            self.world,
            "SELECT c.*, a.balance, a.held FROM drain_channels c JOIN accounts a ON a.id = c.account_id"
            " WHERE c.channel = ?",
            self.id.hex(),
        )[0]

    @property
    def charged(self) -> int:
        """Micro-USDC charged so far."""
        row = self.row()
        return int(row["accepted"] - row["balance"])


def spend(
    world: World,
    voucher: str,
    body: object = None,
    path: str = "/v1/chat/completions",
    headers: Mapping[str, str] | None = None,
) -> Reply:
    """One request with a voucher."""
    sent = {"x-drain-voucher": voucher, **(headers or {})}
    return ask(world, "POST", path, body=chat() if body is None else body, headers=sent)


def query(world: World, sql: str, *args: str | int) -> list[dict[str, Any]]:
    """Rows of the daemon's database."""
    db = connect_read_only(world.daemon.db)
    try:
        cursor = db.execute(sql, args)
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor]
    finally:
        db.close()


def code(reply: Reply) -> str:
    """The code of a refusal, which the header repeats."""
    found = reply.json()["error"]["code"]
    assert reply.status == 402, reply.data
    assert reply.headers["x-drain-error"] == found
    return str(found)
