"""eth-account, another implementation of what DRAIN signs. It brings a library that sets the whole process's recursion
limit to 100,000 when it is imported, with which JSON that is nested deeply would end the process.
"""

from __future__ import annotations

import sys

_limit = sys.getrecursionlimit()
from eth_account import Account  # noqa: E402
from eth_account.messages import encode_typed_data  # noqa: E402
from eth_account.typed_transactions.typed_transaction import TypedTransaction  # noqa: E402

sys.setrecursionlimit(_limit)

__all__ = ["Account", "TypedTransaction", "encode_typed_data"]
