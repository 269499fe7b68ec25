"""A chain for tests, as a program with a loopback port: `python -m tests.chain`.

`contracts/` are DRAIN's two contracts and a token in Vyper, written here from their documented behaviour; `evm` runs
them; `node` answers JSON-RPC; `faults` makes it slow, wrong or silent on demand; `control` is what tests use of it.
"""
