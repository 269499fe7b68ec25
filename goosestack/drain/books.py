"""Channels, vouchers and claims in the ledger: verbs and queries of an open transaction. No chain and no cryptography.

A channel is an account in `usdc_micro`. What its consumer has signed for is posted as top-ups, what requests cost is
charged there, so that for every channel, always:

    base <= charged <= accepted <= deposit      micro-USDC, of the channel's whole life

`accepted` is the highest amount of a voucher that paid for anything, `charged` is what was billed on top of `base`, and
`base` is what the contract had paid out of vouchers that these books do not know, because they are lost. A voucher's
nonce is used while the request that it paid for is held or settled: one that is released frees it by that alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from goosestack import ledger
from goosestack.accounts import create_user
from goosestack.drain.abi import Channel
from goosestack.drain.signing import checksum_address
from goosestack.drain.vouchers import Domain, Voucher
from goosestack.errors import ChainUnknown, ChannelClosing, ExceedsDeposit, InvalidNonce
from goosestack.ledger import GRAINS, Authorized, NewHold
from goosestack.store import Row, Tx

UNIT = "usdc_micro"
GRAIN = GRAINS[UNIT]


@dataclass(frozen=True, slots=True)
class Standing:
    """A channel as these books have it. Amounts are micro-USDC."""

    id: int
    account_id: int
    channel_id: bytes
    consumer: bytes
    deposit: int
    expiry: int
    base: int
    accepted: int
    claimed: int
    closing: int | None
    """The amount of the close that was signed: nothing is taken any more."""
    used_at: str
    balance: int
    held: int
    """Grains."""

    @property
    def charged(self) -> int:
        """What the consumer owes of the deposit, for the channel's whole life."""
        return self.accepted - self.balance


_STANDING = (
    "SELECT c.id, c.account_id, c.channel, c.consumer, c.deposit, c.expiry, c.base, c.accepted, c.claimed, c.closing,"
    " c.used_at, a.balance, a.held FROM drain_channels c JOIN accounts a ON a.id = c.account_id"
)


def _read(row: Row) -> Standing:
    number, account_id, channel_id, consumer, *rest = row
    return Standing(number, account_id, bytes.fromhex(channel_id), bytes.fromhex(consumer), *rest)


def find(tx: Tx, domain: Domain, channel_id: bytes) -> Standing | None:
    """A channel that was seen before."""
    row = tx.execute(
        f"{_STANDING} WHERE c.chain_id = ? AND c.contract = ? AND c.channel = ?",
        (domain.chain_id, domain.contract.hex(), channel_id.hex()),
    ).fetchone()
    return None if row is None else _read(row)


def open_channels(tx: Tx, domain: Domain) -> list[Standing]:
    """All that the contract has, as far as is known, the one that expires next first."""
    rows = tx.execute(
        f"{_STANDING} WHERE c.gone_at IS NULL AND c.chain_id = ? AND c.contract = ? ORDER BY c.expiry, c.id",
        (domain.chain_id, domain.contract.hex()),
    ).fetchall()
    return [_read(row) for row in rows]


def user_of(consumer: bytes) -> str:
    """The one user that an address is."""
    return f"usr_0x{consumer.hex()}"


def see(tx: Tx, domain: Domain, channel: Channel, now: str) -> Standing:
    """The channel, opened in these books where they do not know it, and never behind what the contract has paid.

    Raises ChainUnknown where vouchers that these books do not know are being claimed, and ExceedsDeposit where the
    channel is another one by now, with less in it than was accepted: what a reorganisation can make of an id.
    """
    found = find(tx, domain, channel.id)
    _refuse_unburied(found, channel)
    if found is None:
        user_id = user_of(channel.consumer)
        if tx.execute("SELECT 1 FROM users WHERE id = ?", (user_id,)).fetchone() is None:
            create_user(tx, checksum_address(channel.consumer), now, user_id)
        place = f"{domain.chain_id}:{domain.contract.hex()}:{channel.id.hex()}"
        account_id = ledger.open_account(tx, user_id, UNIT, now, place)
        tx.execute(
            "INSERT INTO drain_channels (chain_id, contract, channel, account_id, consumer, deposit, expiry, base,"
            " accepted, claimed, created_at, used_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                domain.chain_id,
                domain.contract.hex(),
                channel.id.hex(),
                account_id,
                channel.consumer.hex(),
                channel.deposit,
                channel.expiry,
                channel.claimed,
                channel.claimed,
                channel.claimed,
                now,
                now,
            ),
        )
    else:
        if channel.deposit < found.accepted:
            raise ExceedsDeposit()
        tx.execute(  # it is there, whatever was believed of it
            "UPDATE drain_channels SET deposit = ?, expiry = ?, gone_at = NULL WHERE id = ?",
            (channel.deposit, channel.expiry, found.id),
        )
        lost = channel.claimed - found.accepted
        if lost > 0:  # paid by vouchers that were lost: what they bought is gone with them
            tx.execute(
                "UPDATE drain_channels SET base = base + ?, accepted = accepted + ?, claimed = ? WHERE id = ?",
                (lost, lost, channel.claimed, found.id),
            )
    standing = find(tx, domain, channel.id)
    assert standing is not None
    return standing


def _refuse_unburied(standing: Standing | None, channel: Channel) -> None:
    """Our own claims are never above what was accepted. One that is would be of vouchers that were lost: which is
    written down for good, so it must be in a buried block, by all nodes, and until then nobody knows what is left."""
    known = channel.claimed if standing is None else max(standing.accepted, channel.claimed)
    if channel.unburied > known:
        raise ChainUnknown(why="a claim that these books do not know is not buried", headers={"retry-after": "30"})


# --- paying by voucher ----------------------------------------------------------------------------------------


def authorize(
    tx: Tx,
    domain: Domain,
    channel: Channel,
    voucher: Voucher,
    hold: NewHold,
    at_least: int,
    at_most: int,
    now: str,
) -> Authorized:
    """Take a voucher, add what it adds to the channel's credit, and hold; or, below `at_least` grains, nothing at all.

    The voucher's signature, and that it is within the deposit, were checked before. Raises ChannelClosing and
    InvalidNonce, and as `see` does. Repeated with the id of an open hold, it answers the same again.
    """
    refuse_used(tx, domain, voucher, hold.id)
    available = look(tx, domain, channel, voucher).available
    known = tx.execute("SELECT 1 FROM usage_log WHERE id = ?", (hold.id,)).fetchone() is not None
    if available < at_least and not known:
        return Authorized(None, available)
    standing = see(tx, domain, channel, now)
    hold = replace(hold, account_id=standing.account_id)
    added = max(0, voucher.amount - standing.accepted)
    if standing.balance + added > ledger.MOST_UNITS:
        raise ExceedsDeposit()
    if added:
        ref = f"{domain.chain_id}:{domain.contract.hex()}:{channel.id.hex()}:{voucher.amount}"
        ledger.post(tx, standing.account_id, "topup", ref, added, now)
    answer = ledger.authorize(tx, hold, at_least, at_most, now)
    tx.execute("UPDATE drain_channels SET accepted = accepted + ?, used_at = ? WHERE id = ?", (added, now, standing.id))
    tx.execute(
        "INSERT INTO drain_vouchers (channel_id, nonce, amount, signature, hold_id, received_at)"
        " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (channel_id, nonce, amount) DO UPDATE SET hold_id = excluded.hold_id",
        (standing.id, voucher.nonce, voucher.amount, voucher.claimable.hex(), hold.id, now),
    )
    return answer


def refuse_used(tx: Tx, domain: Domain, voucher: Voucher, hold_id: str = "") -> None:
    """Raise ChannelClosing or InvalidNonce where the voucher pays for nothing any more, but for the request `hold_id`
    that it may pay for already."""
    standing = find(tx, domain, voucher.channel_id)
    if standing is None:
        return
    if standing.closing is not None:
        raise ChannelClosing()
    used = tx.execute(
        "SELECT 1 FROM drain_vouchers v JOIN usage_log u ON u.id = v.hold_id"
        " WHERE v.channel_id = ? AND v.nonce = ? AND u.status IN ('held', 'settled') AND u.id <> ?",
        (standing.id, voucher.nonce, hold_id),
    ).fetchone()
    if used is not None or voucher.nonce <= highest_settled(tx, standing.id):
        raise InvalidNonce()


def highest_settled(tx: Tx, channel: int) -> int:
    """The highest nonce that paid for a request that was charged; -1 where there is none."""
    row = tx.execute(
        "SELECT v.nonce FROM drain_vouchers v JOIN usage_log u ON u.id = v.hold_id"
        " WHERE v.channel_id = ? AND u.status = 'settled' ORDER BY v.nonce DESC LIMIT 1",
        (channel,),
    ).fetchone()
    return -1 if row is None else int(row[0])


def look(tx: Tx, domain: Domain, channel: Channel, voucher: Voucher) -> Authorized:
    """What the voucher could hold now. Raises ChainUnknown as `see` does."""
    standing = find(tx, domain, channel.id)
    _refuse_unburied(standing, channel)
    if standing is None:
        return Authorized(None, max(0, voucher.amount - channel.claimed) * GRAIN)
    accepted = max(standing.accepted, channel.claimed)
    return Authorized(None, ledger.left_in(tx, standing.account_id) + max(0, voucher.amount - accepted) * GRAIN)


def charged(tx: Tx, domain: Domain, channel_id: bytes) -> int:
    """What a channel that was seen before was charged in its whole life, in micro-USDC."""
    standing = find(tx, domain, channel_id)
    assert standing is not None
    return standing.charged
