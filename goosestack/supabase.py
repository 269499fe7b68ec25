"""Who calls, by the access token (JWT) of the operator's own Supabase project.

A sibling of `auth`: keys and tokens have nothing in common but their interface, and PyJWT is loaded only where this
module is. A token is verified here, without asking anybody: its signature by the project's public keys (ES256, RS256;
`KeySet` fetches them) or by the project's secret (HS256; `Secret`), never by what the token says of itself; then who
made it, for whom, until when. A token that was good is remembered by its whole hash until it expires. Of what it says,
nothing counts but `sub`: it names the user, whom a first sight makes; and, where the operator says so, a claim that
names a plan (`PlanClaim`). `user_metadata` is the user's to write, and says nothing.

Facts of Supabase: the issuer is `{url}/auth/v1`; the keys lie at `/.well-known/jwks.json` below it, and rotate; users
have `aud` and `role` "authenticated" and a UUID as `sub`; the project's own legacy API keys are tokens by the same
secret, with another role and no `sub`; `GET {issuer}/user` with the `apikey` tells whether a token still stands.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Protocol

import cryptography  # noqa: F401  without it PyJWT has neither ES256 nor RS256, and says so late
import jwt
import msgspec
from yarl import URL

from goosestack import plans
from goosestack.accounts import Principal, ensure_identity, find_identity
from goosestack.auth import RawHeaders, credential as one_credential
from goosestack.clock import written
from goosestack.errors import NotAuthenticated, Problem, SignInUnavailable, TokenExpired
from goosestack.http import Broken, Client, Lost, NotSent
from goosestack.logs import redact_bytes
from goosestack.plans import Plans
from goosestack.store import Store

MOST_TOKEN = 8 * 1024
"""Bytes; what is longer is not looked at."""

MOST_KNOWN = 10_000
"""Tokens that are remembered; with more, all are verified anew."""

LEEWAY_S = 30
"""How far the project's clock may be from ours."""

REFETCH_S = 30.0
"""How often an unknown `kid` may have the keys fetched again: whoever makes tokens up makes up names of keys."""

FIRST_S = 3.0
"""The same while no keys were ever had."""

ANSWER_S = 5.0
"""How long the project may take to answer."""

QUICK_S = 1.0
"""How long a request waits for that where there is something to go on with; the answer counts when it comes."""

TELL_S = 60.0
"""How often the operator is told that the project cannot be asked."""

_FAR_OFF = 32_503_680_000
"""The year 3000, in which whatever has a later end ends, too."""

_MOST_ANSWER = 256 * 1024
_MOST_REASON = 300
_TOKEN = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_EMAIL = re.compile(r"[!-?A-~]{1,128}@[!-?A-~]{1,125}")
_ASYMMETRIC: Mapping[object, str] = {("EC", "P-256"): "ES256", ("RSA", None): "RS256"}
"""The algorithm of a public key, by its kind (`kty`) and curve (`crv`)."""

_FAILED = (NotSent, Lost, Broken, TimeoutError)
_ENDED = frozenset(("bad_jwt", "session_not_found", "session_expired", "user_not_found", "user_banned"))
"""What the sign-in service says of a token that stands no more: another 401 is not about the token, but of whatever
stands before that service, about our `apikey`."""


class Keys(Protocol):
    """What tokens are verified with."""

    generation: int
    """Another number where what was good before may be so no longer."""

    async def find(self, header: Mapping[str, Any]) -> tuple[Any, str] | None:
        """The key for a token with this header, and the one algorithm that is used with it; None where there is none.
        Raises SignInUnavailable."""
        ...

    async def fetch(self) -> None:
        """Have those of now, if they can change. Raises NotSent, Lost, Broken or TimeoutError, and keeps those that
        were."""
        ...


class Secret:
    """One secret for all tokens (HS256), shared with the project."""

    generation = 0

    def __init__(self, secret: str) -> None:
        self._secret = secret

    async def find(self, header: Mapping[str, Any]) -> tuple[Any, str] | None:
        """See `Keys.find`."""
        return self._secret, "HS256"

    async def fetch(self) -> None:
        """See `Keys.fetch`: it does not change."""


class KeySet:
    """The project's public keys, by `kid`. The last good set is kept, however long no other can be had."""

    def __init__(self, client: Client, issuer: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._client, self._url, self._clock = client, URL(f"{issuer}/.well-known/jwks.json"), clock
        self._keys: dict[str, jwt.PyJWK] = {}
        self._looked_at: float | None = None
        self._looking: asyncio.Task[None] | None = None
        self._asked = self._answered = 0
        self._published: list[dict[str, Any]] = []
        self.generation = 0

    async def find(self, header: Mapping[str, Any]) -> tuple[Any, str] | None:
        """See `Keys.find`. Where the `kid` is unknown, the project may have a new key: see `REFETCH_S`."""
        kid = header.get("kid")
        if type(kid) is not str or header.get("alg") not in _ASYMMETRIC.values():
            return None
        if kid not in self._keys:
            await self._look_again()
        key = self._keys.get(kid)
        return None if key is None else (key, key.algorithm_name)

    async def _look_again(self) -> None:
        """Fetch the keys unless that was just tried; whoever comes meanwhile waits for the same answer."""
        if self._looking is None:
            wait = REFETCH_S if self._keys else FIRST_S
            if self._looked_at is None or self._clock() - self._looked_at >= wait:
                self._looked_at = self._clock()
                self._looking = asyncio.create_task(self._try())
        if self._looking is not None:
            await _done(self._looking, QUICK_S if self._keys else None)
        if not self._keys:
            raise SignInUnavailable(headers={"retry-after": str(round(FIRST_S))})

    async def _try(self) -> None:
        try:
            await self.fetch()
        except _FAILED:
            pass  # the keys that were good still are
        finally:
            self._looking = None

    async def fetch(self) -> None:
        """See `Keys.fetch`. Of several at once, what was asked for last counts, in whatever order they are answered."""
        self._asked += 1
        number = self._asked
        status, body = await _get(self._client, self._url, {})
        if status != 200:
            raise Broken(f"status {status} for the keys")
        if number < self._answered:
            return
        try:
            published = msgspec.json.decode(body, type=_Document).keys
            keys = {entry["kid"]: key for entry in published if (key := _usable(entry)) is not None}
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise Broken("the keys cannot be read") from error
        if not keys:
            rest = "the last ones go on" if self._keys else "an older project has none, and needs JWT_SECRET"
            raise Broken(f"there is no key that can be used among those published; {rest}")
        self._answered = number
        if published != self._published:
            self.generation += 1
            self._keys, self._published = keys, published


class _Document(msgspec.Struct):
    keys: list[dict[str, Any]]


def _usable(entry: dict[str, Any]) -> jwt.PyJWK | None:
    """A published key; None where tokens are not to be verified with it."""
    try:
        algorithm = _ASYMMETRIC.get((entry.get("kty"), entry.get("crv")))
        if algorithm is None or entry.get("alg", algorithm) != algorithm or entry.get("use", "sig") != "sig":
            return None
        return jwt.PyJWK.from_dict(entry, algorithm) if type(entry.get("kid")) is str else None
    except (jwt.PyJWTError, TypeError, ValueError):
        return None


@dataclass(slots=True)
class _Known:
    """A token that was good."""

    principal: Principal
    expires_at: float
    """Seconds since 1970, the leeway included."""
    generation: int
    stands: bool | None = None
    """What the project, where it is asked, said last; None until it has said something."""
    ask_at: float = -math.inf
    """When it is to be asked again."""
    asking: asyncio.Task[None] | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """Asking the project whether a token still stands: else one that was signed out is good until it expires."""

    api_key: str
    every_s: float


@dataclass(frozen=True, slots=True)
class PlanClaim:
    """Where a token names its user's plan. What it says stands to the end of the month that it was made in, and as
    long as the token does: a downgrade waits for the next month, and a key has no more than the last token gave it."""

    path: tuple[str, ...]
    """The names that lead to the claim, as `("app_metadata", "plan")`."""
    plans: Plans
    warn: Callable[[str], None]

    def read(self, claims: Mapping[str, Any]) -> tuple[str, str] | None:
        """The plan and until when; None where the token names none."""
        found: Any = claims
        for name in self.path:
            found = found.get(name) if isinstance(found, dict) else None
        plan = self.plans.heard(found, lambda name: self.warn(f"a token says {name!r}, which is no plan"))
        if plan is None:
            return None
        made, expires = claims.get("iat"), _iso(int(claims["exp"]) + LEEWAY_S)
        if not isinstance(made, int | float):
            return plan, expires
        return plan, max(expires, plans.month(_iso(int(made))).ends_at)


def _iso(seconds: int) -> str:
    return written(1000 * max(0, min(seconds, _FAR_OFF)))


class Supabase:
    """The users of one project, by their access tokens."""

    def __init__(
        self,
        *,
        store: Store,
        client: Client,
        issuer: str,
        keys: Keys,
        anonymous: bool,
        check: Check | None,
        now: Callable[[], str],
        alert: Callable[..., None],
        plan: PlanClaim | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`anonymous` lets users in who gave no name; without `check`, the project is never asked about a token.
        `alert` tells the operator of something to look at: its kind, then facts."""
        self._store, self._client, self._issuer, self._keys = store, client, issuer, keys
        self._anonymous, self._check, self._now, self._clock = anonymous, check, now, clock
        self.alert, self._plan = alert, plan
        self._told_at = -math.inf
        self._known: dict[bytes, _Known] = {}

    def credential(self, headers: RawHeaders) -> str | None:
        """See `Identifier.credential`."""
        return one_credential(headers)

    def owns(self, credential: str) -> bool:
        """See `Identifier.owns`: three parts, of which only a token consists."""
        return credential.count(".") == 2

    def missing(self) -> Problem:
        """See `Identifier.missing`."""
        return NotAuthenticated()

    async def identify(self, credential: str) -> Principal | None:
        """See `auth.Identifier.identify`. Raises TokenExpired or SignInUnavailable."""
        if len(credential) > MOST_TOKEN or _TOKEN.fullmatch(credential) is None:
            return None
        digest = sha256(credential.encode()).digest()
        known = self._remembered(digest)
        if known is None:
            verified = await self._verify(credential)
            if verified is None:
                return None
            known = self._remembered(digest)  # another request with it may have been faster
            if known is None:
                known = verified
                if len(self._known) >= MOST_KNOWN:
                    self._known.clear()
                self._known[digest] = known
        if self._check is not None and not await self._still_stands(credential, known, self._check):
            return None
        return known.principal

    def _remembered(self, digest: bytes) -> _Known | None:
        """What is known of a token, as long as it holds."""
        known = self._known.get(digest)
        if known is None or known.generation != self._keys.generation or known.expires_at <= time.time():
            return None
        return known

    async def fetch_keys(self) -> None:
        """Have the project's keys of now: called every few minutes, so that one that was withdrawn is not believed for
        long."""
        try:
            await self._keys.fetch()
        except _FAILED as error:
            self._tell(f"the keys cannot be fetched: {error or type(error).__name__}")

    def forget(self, key_id: str) -> None:
        """See `auth.Identifier.forget`: tokens have no key here."""

    async def _verify(self, token: str) -> _Known | None:
        try:
            found = await self._keys.find(jwt.get_unverified_header(token))
            if found is None:
                return None
            key, algorithm = found
            generation = self._keys.generation
            claims = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience="authenticated",
                issuer=self._issuer,
                leeway=LEEWAY_S,
                options={"require": ["exp", "sub", "aud", "iss"], "enforce_minimum_key_length": True},
            )
        except jwt.ExpiredSignatureError:
            raise TokenExpired() from None
        except jwt.PyJWTError:
            return None
        if not self._is_user(claims):
            return None
        principal = await self._principal(claims)
        await self._note_plan(principal.user_id, claims)
        return _Known(principal, int(claims["exp"]) + LEEWAY_S, generation)

    def _is_user(self, claims: Mapping[str, Any]) -> bool:
        """Whether this is a user of the project, and not one of its API keys, or an anonymous one unasked for."""
        named = claims.get("is_anonymous", False) is False
        user = claims.get("role") == "authenticated" and _UUID.fullmatch(claims["sub"]) is not None
        return user and (named or self._anonymous)

    async def _principal(self, claims: Mapping[str, Any]) -> Principal:
        subject, email = claims["sub"], claims.get("email")
        known = self._store.peek(find_identity, self._issuer, subject)
        if known is not None:
            return known
        label = email if type(email) is str and _EMAIL.fullmatch(email) is not None else subject
        return await self._store.write(ensure_identity, self._issuer, subject, label, self._now())

    async def _note_plan(self, user_id: str, claims: Mapping[str, Any]) -> None:
        """Write down the plan that the token names, unless that is known: a write a month."""
        said = None if self._plan is None else self._plan.read(claims)
        if said is not None and not self._store.peek(plans.stands, user_id, *said):
            await self._store.write(plans.sign_in_said, user_id, *said, self._now())

    async def _still_stands(self, token: str, known: _Known, check: Check) -> bool:
        """Whether the project still says so, which is asked unless it has said so lately, or has ended the token. One
        that it confirmed once is believed while it cannot be asked; else raises SignInUnavailable."""
        if known.asking is None and known.stands is not False and self._clock() >= known.ask_at:
            known.asking = asyncio.create_task(self._ask(token, known, check))
        if known.asking is not None:
            await _done(known.asking, None if known.stands is None else QUICK_S)
        if known.stands is None:
            raise SignInUnavailable(headers={"retry-after": str(round(FIRST_S))})
        return known.stands

    async def _ask(self, token: str, known: _Known, check: Check) -> None:
        """Ask the project about a token, once for all who wait; where it cannot be asked, again before long."""
        headers = {"apikey": check.api_key, "authorization": f"Bearer {token}"}
        wait_s = check.every_s
        try:
            status, body = await _get(self._client, URL(f"{self._issuer}/user"), headers)
            if status != 200 and _code(body) not in _ENDED:
                said = redact_bytes(body[:_MOST_REASON], (check.api_key, token)).decode("utf-8", "replace")
                raise Broken(f"status {status}: {said}; is SUPABASE_ANON_KEY the project's?")
            known.stands = status == 200
        except _FAILED as error:
            wait_s = FIRST_S if known.stands is None else min(check.every_s, REFETCH_S)
            self._tell(f"whether a token still stands cannot be asked: {error or type(error).__name__}")
        finally:
            known.ask_at, known.asking = self._clock() + wait_s, None

    def _tell(self, what: str) -> None:
        if self._clock() - self._told_at >= TELL_S:
            self._told_at = self._clock()
            self.alert("sign_in", what=what)


def _code(body: bytes) -> str | None:
    """Which error the sign-in service says it is; None where it is not that service that speaks."""
    try:
        return msgspec.json.decode(body, type=_Error).error_code
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


class _Error(msgspec.Struct):
    error_code: str | None = None


async def _done(task: asyncio.Task[None], patience_s: float | None) -> None:
    """Wait for what others may be waiting for, too: whoever leaves, or loses patience, takes it away from nobody."""
    await asyncio.wait({task}, timeout=patience_s)
    if task.done():
        task.result()


async def _get(client: Client, url: URL, headers: Mapping[str, str]) -> tuple[int, bytes]:
    """The status and the body. Raises NotSent, Lost, Broken or TimeoutError."""
    async with asyncio.timeout(ANSWER_S):
        answer = await client.get(url, {"accept": "application/json", "accept-encoding": "identity", **headers})
        try:
            return answer.status, await answer.read(_MOST_ANSWER)
        finally:
            answer.close()
