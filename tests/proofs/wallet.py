"""What DRAIN adds to the proof that no credential is written down: a wallet's key, and a node's address with a key.

What knows a chain is loaded where it is needed, since not every Python can have it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from goosestack.cli import EXIT_REFUSED
from tests.asking import Reply
from tests.proofs.proof import Attempt
from tests.shell import operator_of
from tests.world import Program, World, until

if TYPE_CHECKING:
    from tests.chain.control import LocalChain
    from tests.channels import Channel
    from tests.proofs.told_secrets import House

WALLET = "0x5de4111afa1a4b94908f83103eb1f1706367c2e68ca870fc3fb9a804cdab365a"
"""The key of the provider on the tests' chain."""
NODE = "operator.node~key_canary-0011-0011"
"""In the path of a node's address."""

CHANNELS: Mapping[str, str] = {"PROVIDER_PRIVATE_KEY": WALLET, "DRAIN_RPC_URL": NODE}
QUOTATION = "invalid API key"


def chained(beyond: Path, settings: dict[str, str]) -> LocalChain:
    """A chain, and the settings with which a daemon sells by it; loaded here, since not every Python can have it."""
    from tests.chain.control import LocalChain
    from tests.channels import TERMS

    chain = LocalChain(beyond)
    (beyond / "credentials" / "PROVIDER_PRIVATE_KEY").write_text(WALLET)
    (beyond / "credentials" / "DRAIN_RPC_URL").write_text(chain.url(NODE))
    settings |= TERMS
    return chain


def agent(world: World, chain: LocalChain) -> Channel:
    """Dave, with enough for every request."""
    from tests.channels import Channel

    return Channel.open(world, chain, deposit=10**10)


def unserved(attempt: Attempt, house: House, secrets: Mapping[str, str]) -> None:
    """A start that finds no node, and what is shown of its settings."""
    folder = house.folder / "unserved"
    folder.mkdir()
    settings = {**secrets, "CREDENTIALS_DIRECTORY": "", "DRAIN_RPC_URL": f"http://127.0.0.1:9/{NODE}"}
    env = {**house.world.daemon.env, **settings, "DB_PATH": str(folder / "goosestack.db")}
    start = Program(["goosestack", "serve"], env, folder / "daemon.out", folder)
    house.others.append(start)
    status, said = start.process.wait(60), start.text()
    attempt.must(
        status != 0 and any(name in said for name in CHANNELS), f"it ended with {status} for want of a node: {said}"
    )
    house.command("config", **settings)
    for name, malformed in (("DRAIN_RPC_URL", f"ftp://{NODE}"), ("PROVIDER_PRIVATE_KEY", f"{WALLET}0")):
        shown = operator_of(house.world).run("config", expect=EXIT_REFUSED, env={**settings, name: malformed})
        house.search("".join(shown).encode(), f"what `goosestack config` prints of a malformed {name}")
    attempt.meet("a start without a node")


def paid_and_closed(attempt: Attempt, house: House, request: Callable[[], Reply]) -> None:
    """Claims and a close, by a node that fails first, and quotes the key in its address."""
    from tests.channels import query

    assert house.dave is not None
    dave, chain = house.dave, house.dave.chain
    operator = {"authorization": f"Bearer {house.secrets['ADMIN_TOKEN']}"}
    quoted = {"code": -32001, "message": f"{QUOTATION} {NODE} at {chain.url(NODE)}"}
    faults = (("error", quoted), ("cut", None), ("status", 403), ("text", f"no access with {NODE}"))
    for kind, value in faults:
        for method in (None, "eth_sendRawTransaction"):
            rule = {} if method is None else {"method": method}
            chain.fault(kind, value, node=NODE, **rule)
            refused = request()
            house.ask("POST", "/v1/admin/claim?force=true", headers=operator)
            house.ask("POST", "/v1/close-channel", body={"channelId": f"0x{'77' * 32}"})
            chain.heal()
            attempt.meet("a node that fails", int(refused.status == 503))
    said = house.world.daemon.program.text()
    attempt.meet("a node's quotation in the log", int(QUOTATION in said))

    def claimed() -> bool:
        house.command("drain", "claim", "--force")
        chain.mine(4)
        under_way = query(house.world, "SELECT 1 FROM drain_claims WHERE status = 'sent'")
        return chain.claimed(dave.id) > 0 and not under_way

    until(claimed, "the claim")
    house.world.check()
    for words in ("status", "channels"):
        house.command("drain", words)
    for path in ("stats", "vouchers"):
        attempt.must(house.ask("GET", f"/v1/admin/{path}", headers=operator).status == 200, f"no {path} are shown")

    close = house.ask("POST", "/v1/close-channel", body={"channelId": f"0x{dave.id.hex()}"})
    attempt.must(close.status == 200, f"the close is refused: {close.data!r}")
    attempt.meet("a node was asked", len(chain.asked(NODE)))
    attempt.expect("a node that fails", "a node's quotation in the log", "a node was asked", "voucher: an answer")
