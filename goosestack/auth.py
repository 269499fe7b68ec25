"""Who calls: one credential, in whichever header it comes, and the identifiers that can prove it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Protocol

from goosestack.accounts import KEY_PREFIX, Principal, find_principal, hash_key
from goosestack.errors import CredentialConflict, Invalid, NotAuthenticated, Problem
from goosestack.store import Store

RawHeaders = Iterable[tuple[bytes, bytes]]

_KEY = re.compile(r"gsk_[A-Za-z0-9_-]{32,64}")
MOST_KNOWN = 10_000
"""Keys that are remembered; with more, all are looked up anew."""

_PROVIDER_KEY = re.compile(r"[\x21-\x7e]{8,512}")


class Identifier(Protocol):
    """One way to prove who calls."""

    def credential(self, headers: RawHeaders) -> str | None:
        """What may be a credential of this kind; None where there is none. Raises CredentialConflict."""
        ...

    def owns(self, credential: str) -> bool:
        """Whether it is meant as one, good or bad: SDKs send a placeholder where they are given no key."""
        ...

    def missing(self) -> Problem:
        """What is told where no credential of any kind was sent, and this is the first kind to ask for."""
        ...

    async def identify(self, credential: str) -> Principal | None:
        """Whom the credential stands for; None where it is not of this kind, or proves nothing."""
        ...

    def forget(self, key_id: str) -> None:
        """A key stands for nobody any more."""
        ...


class Asking(Identifier, Protocol):
    """An identifier that others must be asked for."""

    def asks(self, headers: RawHeaders) -> bool:
        """Whether it would ask for a stranger, who may have invented what was sent."""
        ...


class Keys:
    """`gsk_` keys, looked up by hash: nothing of what the caller sends ever meets SQL or is compared in clear."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, Principal] = {}

    def credential(self, headers: RawHeaders) -> str | None:
        """See `Identifier.credential`."""
        return credential(headers)

    def owns(self, credential: str) -> bool:
        """See `Identifier.owns`."""
        return credential.startswith(KEY_PREFIX)

    def missing(self) -> Problem:
        """See `Identifier.missing`."""
        return NotAuthenticated()

    async def identify(self, credential: str) -> Principal | None:
        """See `Identifier.identify`. A key that was good is remembered until it is revoked, by its whole hash."""
        if _KEY.fullmatch(credential) is None:
            return None
        key_hash = hash_key(credential)
        principal = self._known.get(key_hash)
        if principal is None:
            principal = self._store.peek(find_principal, key_hash)
            if principal is not None:
                if len(self._known) >= MOST_KNOWN:
                    self._known.clear()
                self._known[key_hash] = principal
        return principal

    def forget(self, key_id: str) -> None:
        """A key was revoked."""
        self._known = {known: principal for known, principal in self._known.items() if principal.key_id != key_id}


def credential(headers: RawHeaders) -> str | None:
    """The caller's credential, from `Authorization: Bearer` or `x-api-key`; None where there is none.

    Raises CredentialConflict where two different ones are sent, or one header twice: a proxy in front may have looked
    at the other.
    """
    found: set[str] = set()
    names: list[bytes] = []
    for name, value in headers:
        if name == b"authorization":
            scheme, _, token = value.partition(b" ")
            names.append(name)
            found.add(token.strip().decode("latin-1") if scheme.lower() == b"bearer" else "")
        elif name == b"x-api-key":
            names.append(name)
            found.add(value.strip().decode("latin-1"))
    if len(found) > 1 or len(names) != len(set(names)):
        raise CredentialConflict()
    return found.pop() if found else None


async def identify(identifiers: Sequence[Identifier], headers: RawHeaders) -> Principal:
    """The proven caller. Raises NotAuthenticated, CredentialConflict, or what the first identifier says is missing."""
    sent = [(each, text) for each in identifiers if (text := each.credential(headers)) is not None]
    if not sent:
        raise identifiers[0].missing()
    if len({text for _, text in sent}) > 1:
        sent = [(each, text) for each, text in sent if each.owns(text)]
        if len({text for _, text in sent}) > 1:
            raise CredentialConflict()
    for identifier, text in sent:
        principal = await identifier.identify(text)
        if principal is not None:
            return principal
    raise NotAuthenticated()


def provider_key(headers: RawHeaders) -> str | None:
    """The caller's own provider key (`X-Provider-Key`); None where there is none. Raises Invalid."""
    values = [value for name, value in headers if name == b"x-provider-key"]
    if not values:
        return None
    text = values[0].decode("latin-1")
    if len(values) > 1 or _PROVIDER_KEY.fullmatch(text) is None or _KEY.fullmatch(text) is not None:
        raise Invalid(reason="`X-Provider-Key` must be one provider key")
    return text
