"""DRAIN: requests paid by vouchers that a wallet signs for a channel on a chain.

From the bottom: `signing` (cryptography), `abi` (the contract's words), `vouchers` (what a header says and who signed
it), `rpc` (asking nodes), `chain` (what they say of channels), `claiming` (getting paid). Only here is anything
imported that knows a chain, and this folder is imported only where DRAIN is on: it needs `goosestack[drain]`.
"""
