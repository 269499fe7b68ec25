"""A chain for tests, as a program with a loopback port: `python -m tests.chain`.

`contracts/` are DRAIN's two contracts and a token in Vyper, written here from their documented behaviour; `evm` runs
them and `node` answers for it, or `anvil` does both; `faults` is the door, slow, wrong or silent on demand; `control`
is what tests use of all this, and `places` says who and what is where.
"""
