"""JSON-RPC to Ethereum nodes: several of them, each bounded in time, and none of them believed without a look.

An answer counts where it comes in time, has the right shape and is from a node on the right chain. Where no node gives
one, the state of the chain is unknown, and `ChainUnknown` says so: never a guess.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from yarl import URL

from goosestack import __version__
from goosestack.drain import abi
from goosestack.errors import ChainUnknown
from goosestack.http import Answer, Broken, Client, Lost, NotSent

T = TypeVar("T")

MOST_ANSWER = 1024 * 1024
AT_ONCE = 32
"""Questions under way: strangers can make us ask, by channel ids that they invent."""
DOWN_S = 30.0
"""How long a node that failed is asked last."""
LEAST_KEY = 8
"""Characters from which on a part of a node's address is taken for a key, that nodes quote when they refuse it."""
MOST_SAID = 200
SAME_CHAIN_S = 600.0
"""How long a node is believed to be still on its chain."""
RETRY_AFTER_S = 5

_HEADERS = {
    "content-type": "application/json",
    "accept": "application/json",
    "accept-encoding": "identity",
    "user-agent": f"goosestack/{__version__}",
}
_QUANTITY = re.compile(r"0x[0-9a-fA-F]{1,64}")
_DATA = re.compile(r"0x([0-9a-fA-F]{2})*")


class Reverted(Exception):
    """The contract refuses the call. `error` is the contract's name for why; None where the node does not say."""

    def __init__(self, error: str | None) -> None:
        super().__init__(error or "reverted")
        self.error = error


class Refused(Exception):
    """A node answers with an error of its own; the text is the node's, without the key in its address, for logs and for
    telling cases apart."""


class NoAnswer(Exception):
    """A node gives no answer that can be read; the text says why, without the node's address."""


def unknown(why: str, retry_after_s: int = RETRY_AFTER_S) -> ChainUnknown:
    """The failure of everything that needs the chain; `why` is for the operator's log alone."""
    return ChainUnknown(why=why, headers={"retry-after": str(retry_after_s)})


@dataclass(slots=True, eq=False)
class _Node:
    url: URL
    down_until: float = float("-inf")
    same_chain_until: float = float("-inf")

    def quoted(self, said: str) -> str:
        """What the node says, for a log: short, and without the key that its address may hold."""
        for part in sorted({*self.url.parts, *self.url.raw_path.split("/")}, key=len, reverse=True):
            if len(part) >= LEAST_KEY:
                said = re.sub(re.escape(part), "[redacted]", said, flags=re.IGNORECASE)
        return said[:MOST_SAID]


class Rpc:
    """The nodes that the operator named, the first preferred, and what is known of their health."""

    def __init__(
        self,
        client: Client,
        urls: Sequence[str],
        chain_id: int,
        *,
        timeout_s: float = 4.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.chain_id = chain_id
        self._client = client
        self._nodes = [_Node(URL(url)) for url in urls]
        self._timeout_s = timeout_s
        self._clock = clock
        self._ids = itertools.count(1)
        self._room = asyncio.Semaphore(AT_ONCE)

    async def ask(self, method: str, params: Sequence[object], read: Callable[[object], T]) -> T:
        """The first readable answer of a node, in order of preference; `read` raises ValueError for what is none.

        Raises ChainUnknown where there is none, and Reverted.
        """
        why = "no node is configured"
        for node in self._in_order():
            try:
                return await self._answer(node, method, params, read)
            except (NoAnswer, Refused) as error:
                why = f"{method}: {error}"
        raise unknown(why)

    async def agree(self, method: str, params: Sequence[object], read: Callable[[object], T]) -> T:
        """What all nodes say that answer: for questions with one right answer, whichever node is asked.

        Raises ChainUnknown where nobody answers, and where two answers differ.
        """
        up = [node for node in self._nodes if node.down_until <= self._clock()] or self._nodes
        said = await asyncio.gather(*(self._answer(node, method, params, read) for node in up), return_exceptions=True)
        answers: list[T] = []
        why = "no node answers"
        for each in said:
            if isinstance(each, NoAnswer | Refused | Reverted):
                why = str(each)
            elif isinstance(each, BaseException):
                raise each
            else:
                answers.append(each)
        if not answers:
            raise unknown(f"{method}: {why}")
        if any(each != answers[0] for each in answers):
            raise unknown(f"{method}: nodes contradict each other")
        return answers[0]

    async def tell(self, method: str, params: Sequence[object], read: Callable[[object], T]) -> list[T | Refused]:
        """Each node's answer or refusal, of those that answer at all: for what every node should hear."""
        said = await asyncio.gather(
            *(self._answer(node, method, params, read) for node in self._nodes), return_exceptions=True
        )
        heard: list[T | Refused] = []
        for each in said:
            if isinstance(each, BaseException) and not isinstance(each, NoAnswer | Refused | Reverted):
                raise each
            if not isinstance(each, NoAnswer | Reverted):
                heard.append(each)
        return heard

    def _in_order(self) -> list[_Node]:
        now = self._clock()
        return sorted(self._nodes, key=lambda node: node.down_until > now)

    async def _answer(self, node: _Node, method: str, params: Sequence[object], read: Callable[[object], T]) -> T:
        """One node's answer. Raises NoAnswer, Refused or Reverted; a node without a readable one is asked last then."""
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._room.acquire()
        except TimeoutError:  # which is not the node's fault
            raise NoAnswer("too many questions are under way") from None
        try:
            async with asyncio.timeout(self._timeout_s):
                if node.same_chain_until <= self._clock():
                    if quantity(await self._exchange(node, "eth_chainId", ())) != self.chain_id:
                        raise NoAnswer("the node is on another chain")
                    node.same_chain_until = self._clock() + SAME_CHAIN_S
                return read(await self._exchange(node, method, params))
        except (NoAnswer, TimeoutError, ValueError) as error:
            node.down_until = self._clock() + DOWN_S
            node.same_chain_until = float("-inf")
            why = "no answer in time" if isinstance(error, TimeoutError) else str(error)
            raise NoAnswer(why) from None
        finally:
            self._room.release()

    async def _exchange(self, node: _Node, method: str, params: Sequence[object]) -> object:
        number = next(self._ids)
        body = json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params}).encode()
        try:
            answer = await self._post(node, body)
            try:
                if answer.status != 200:
                    raise NoAnswer(f"the node answers with status {answer.status}")
                text = await answer.read(MOST_ANSWER)
            finally:
                answer.close()
        except (NotSent, Lost, Broken) as error:
            raise NoAnswer(f"{type(error).__name__}: {error}") from None
        try:
            return _result(text, number)
        except Refused as refused:
            raise Refused(node.quoted(str(refused))) from None

    async def _post(self, node: _Node, body: bytes) -> Answer:
        try:
            return await self._client.post(node.url, _HEADERS, body)
        except Lost as lost:
            if not lost.reused:
                raise
            return await self._client.post(node.url, _HEADERS, body)  # an idle connection that the node had closed


def _result(text: bytes, number: int) -> object:
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        raise NoAnswer("the answer is not JSON") from None
    if not isinstance(message, dict) or message.get("id") != number:
        raise NoAnswer("the answer is to another question")
    error = message.get("error")
    if error is None:
        if "result" not in message:
            raise NoAnswer("the answer has no result")
        return message["result"]
    if not isinstance(error, dict):
        raise NoAnswer("the error has no shape")
    said = str(error.get("message", ""))
    data = _revert_data(error.get("data"))
    if error.get("code") == 3 or "revert" in said.lower() or abi.error_name(data) is not None:
        raise Reverted(abi.error_name(data))
    raise Refused(said)


def _revert_data(value: object) -> bytes:
    """What a contract said on reverting: nodes put it in `data`, one level deeper, or after a word."""
    if isinstance(value, dict):
        value = value.get("data")
    found = re.search(r"0x(?:[0-9a-fA-F]{2})*$", value) if isinstance(value, str) else None
    return bytes.fromhex(found.group()[2:]) if found else b""


def quantity(value: object) -> int:
    """A number of an answer. Raises ValueError."""
    if not isinstance(value, str) or not _QUANTITY.fullmatch(value):
        raise ValueError("the answer has no number where one belongs")
    return int(value, 16)


def data(value: object, size: int | None = None) -> bytes:
    """Bytes of an answer, of this size where one is given. Raises ValueError."""
    if not isinstance(value, str) or not _DATA.fullmatch(value):
        raise ValueError("the answer has no bytes where they belong")
    found = bytes.fromhex(value[2:])
    if size is not None and len(found) != size:
        raise ValueError(f"the answer has {len(found)} bytes, not {size}")
    return found


def members(value: object) -> dict[str, object]:
    """An object of an answer. Raises ValueError."""
    if not isinstance(value, dict):
        raise ValueError("the answer has no object where one belongs")
    return value


def hexadecimal(value: int | bytes) -> str:
    """A number or bytes, as a question has them."""
    return hex(value) if isinstance(value, int) else "0x" + value.hex()
