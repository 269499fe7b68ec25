"""Claims and closes in the ledger: verbs and queries of an open transaction.

A claim is written down with its transaction before that is sent, so that a crash forgets nothing: pending (a voucher
that nothing claims yet), `sent`, then `confirmed`, or `failed`, after which the voucher is pending again. The table
itself holds that there is one under way at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

from goosestack.drain import books
from goosestack.drain.abi import Channel
from goosestack.drain.books import Standing
from goosestack.drain.claiming import Transaction
from goosestack.drain.vouchers import Domain, Voucher
from goosestack.errors import CloseRefused
from goosestack.store import Tx


@dataclass(frozen=True, slots=True)
class Claim:
    """One that is under way."""

    id: int
    channel: int
    voucher: Voucher
    tx_nonce: int
    transactions: tuple[Transaction, ...]
    """All that were made for it, the dearest last."""
    made_at: str
    """When the last of them was."""


def covering(tx: Tx, standing: Standing) -> Voucher | None:
    """The smallest voucher that pays for all that was charged: what goes beyond it stays with the consumer."""
    row = tx.execute(
        "SELECT amount, nonce, signature FROM drain_vouchers WHERE channel_id = ? AND amount >= ?"
        " ORDER BY amount, nonce LIMIT 1",
        (standing.id, standing.charged),
    ).fetchone()
    return None if row is None else Voucher(standing.channel_id, row[0], row[1], bytes.fromhex(row[2]))


def begin(tx: Tx, standing: Standing, voucher: Voucher, transaction: Transaction, now: str) -> None:
    """Write down a claim that is about to be sent."""
    tx.execute(  # of another contract than today's, by an operator who went over to this one
        "UPDATE drain_claims SET status = 'failed', reason = 'the contract was changed', updated_at = ?"
        " WHERE status = 'sent'",
        (now,),
    )
    row = tx.execute(
        "INSERT INTO drain_claims (channel_id, amount, nonce, signature, tx_nonce, status, created_at, updated_at)"
        " VALUES (?, ?, ?, ?, ?, 'sent', ?, ?) RETURNING id",
        (standing.id, voucher.amount, voucher.nonce, voucher.signature.hex(), transaction.nonce, now, now),
    ).fetchone()
    add_transaction(tx, row[0], transaction, now)


def add_transaction(tx: Tx, claim: int, transaction: Transaction, now: str) -> None:
    """Write down a transaction that is about to be sent for a claim. Its nonce is the one that the claim has now."""
    tx.execute("UPDATE drain_claims SET tx_nonce = ?, updated_at = ? WHERE id = ?", (transaction.nonce, now, claim))
    tx.execute(
        "INSERT INTO drain_transactions (hash, claim_id, raw, gas, max_fee, tip, made_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            transaction.hash.hex(),
            claim,
            transaction.raw.hex(),
            transaction.gas,
            transaction.max_fee,
            transaction.tip,
            now,
        ),
    )


def under_way(tx: Tx, domain: Domain) -> Claim | None:
    """The claim that was sent and is not known to have ended."""
    row = tx.execute(
        "SELECT k.id, k.channel_id, c.channel, k.amount, k.nonce, k.signature, k.tx_nonce FROM drain_claims k"
        " JOIN drain_channels c ON c.id = k.channel_id"
        " WHERE k.status = 'sent' AND c.chain_id = ? AND c.contract = ?",
        (domain.chain_id, domain.contract.hex()),
    ).fetchone()
    if row is None:
        return None
    number, channel, channel_id, amount, nonce, signature, tx_nonce = row
    made = tx.execute(
        "SELECT hash, raw, gas, max_fee, tip, made_at FROM drain_transactions WHERE claim_id = ?"
        " ORDER BY max_fee, made_at",
        (number,),
    ).fetchall()
    sent = tuple(
        Transaction(bytes.fromhex(digest), bytes.fromhex(raw), tx_nonce, gas, max_fee, tip, 0)
        for digest, raw, gas, max_fee, tip, _ in made
    )
    voucher = Voucher(bytes.fromhex(channel_id), amount, nonce, bytes.fromhex(signature))
    return Claim(number, channel, voucher, tx_nonce, sent, made[-1][-1])


def confirm(tx: Tx, claim: Claim, claimed: int, now: str) -> None:
    """A claim is paid, by a buried block in which so much of its channel is claimed."""
    tx.execute("UPDATE drain_claims SET status = 'confirmed', updated_at = ? WHERE id = ?", (now, claim.id))
    paid(tx, claim.channel, claimed)


def paid(tx: Tx, channel: int, claimed: int) -> None:
    """So much of a channel is claimed; vouchers that can neither be claimed nor replayed any more are let go."""
    tx.execute("UPDATE drain_channels SET claimed = ? WHERE id = ? AND claimed < ?", (claimed, channel, claimed))
    tx.execute(
        "DELETE FROM drain_vouchers WHERE channel_id = ? AND amount <= ? AND nonce < ?"
        " AND hold_id NOT IN (SELECT id FROM usage_log WHERE status = 'held')",
        (channel, claimed, books.highest_settled(tx, channel)),
    )


def fail(tx: Tx, claim: Claim, reason: str, now: str) -> None:
    """A claim came to nothing; its voucher is pending again."""
    tx.execute(
        "UPDATE drain_claims SET status = 'failed', reason = ?, updated_at = ? WHERE id = ?", (reason, now, claim.id)
    )


def gone(tx: Tx, channel: int, now: str) -> None:
    """The contract has the channel no more, or it has expired and owes nothing."""
    tx.execute("UPDATE drain_channels SET gone_at = ? WHERE id = ?", (now, channel))


def freeze(tx: Tx, domain: Domain, channel: Channel, idle_since: str | None, now: str) -> int | None:
    """End a channel for good; the one amount that its close may be signed for, the same whenever this is repeated.

    None where it must not be: something is in flight, a claim is under way, or it was used after `idle_since`, where
    that is given. A channel that these books never saw counts as used now.
    """
    standing = books.see(tx, domain, channel, now)
    if standing.closing is not None:
        if max(standing.claimed, channel.claimed) > standing.closing:
            raise CloseRefused(reason="it was signed before and not used, and more has been claimed since")
        return standing.closing
    claiming = tx.execute(
        "SELECT 1 FROM drain_claims WHERE channel_id = ? AND status = 'sent'", (standing.id,)
    ).fetchone()
    if standing.held or claiming is not None or (idle_since is not None and _last_use(tx, standing) > idle_since):
        return None
    final = max(standing.charged, standing.claimed, channel.claimed)
    tx.execute("UPDATE drain_channels SET closing = ? WHERE id = ?", (final, standing.id))
    return final


def _last_use(tx: Tx, standing: Standing) -> str:
    """When a voucher was last taken, or a request charged: an answer can take long."""
    (moved,) = tx.execute("SELECT updated_at FROM accounts WHERE id = ?", (standing.account_id,)).fetchone()
    return max(standing.used_at, str(moved))


# --- what the operator is shown -------------------------------------------------------------------------------


def counts(tx: Tx, domain: Domain) -> dict[str, int]:
    """`vouchers`, `unclaimed` vouchers, `channels` that are open, `earned` (claimed by us, micro-USDC)."""
    where = "c.chain_id = ? AND c.contract = ?"
    mine = (domain.chain_id, domain.contract.hex())
    vouchers, unclaimed = tx.execute(
        "SELECT count(*), count(CASE WHEN v.amount > c.claimed AND c.gone_at IS NULL THEN 1 END) FROM drain_vouchers v"
        f" JOIN drain_channels c ON c.id = v.channel_id WHERE {where}",
        mine,
    ).fetchone()
    channels, earned = tx.execute(
        "SELECT count(CASE WHEN c.gone_at IS NULL THEN 1 END), coalesce(sum(c.claimed - c.base), 0)"
        f" FROM drain_channels c WHERE {where}",
        mine,
    ).fetchone()
    return {"vouchers": vouchers, "unclaimed": unclaimed, "channels": channels, "earned": earned}


def latest_voucher(tx: Tx, channel: int) -> tuple[int, int, str] | None:
    """Amount, nonce and time of a channel's highest voucher."""
    row = tx.execute(
        "SELECT amount, nonce, received_at FROM drain_vouchers WHERE channel_id = ? ORDER BY amount DESC LIMIT 1",
        (channel,),
    ).fetchone()
    return None if row is None else (row[0], row[1], row[2])


def shown(tx: Tx, domain: Domain) -> list[dict[str, object]]:
    """Every open channel, amounts in micro-USDC, with the state of its claim."""
    found = []
    for each in books.open_channels(tx, domain):
        sent = tx.execute(
            "SELECT t.hash FROM drain_claims k JOIN drain_transactions t ON t.claim_id = k.id"
            " WHERE k.channel_id = ? AND k.status = 'sent' ORDER BY t.max_fee DESC LIMIT 1",
            (each.id,),
        ).fetchone()
        voucher = latest_voucher(tx, each.id)
        found.append(
            {
                "channelId": "0x" + each.channel_id.hex(),
                "consumer": "0x" + each.consumer.hex(),
                "deposit": each.deposit,
                "accepted": each.accepted,
                "charged": each.charged,
                "claimed": each.claimed,
                "expiry": each.expiry,
                "closing": each.closing,
                "state": "confirmed" if each.charged <= each.claimed else "pending" if sent is None else "sent",
                "transaction": None if sent is None else "0x" + sent[0],
                "nonce": None if voucher is None else voucher[1],
                "usedAt": each.used_at,
            }
        )
    return found
