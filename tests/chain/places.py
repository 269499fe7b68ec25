"""Who and what is on the tests' chain: a cast with money for gas, and the contracts where Polygon has them.

The keys are those that every development chain publishes: they are no secrets.
"""

from __future__ import annotations

from goosestack.drain.signing import Signer, parse_address

DAVE_KEY = "0x59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d"
PROVIDER_KEY = "0x5de4111afa1a4b94908f83103eb1f1706367c2e68ca870fc3fb9a804cdab365a"
MALLORY_KEY = "0x7c852118294e51e653712a81e05800f419141751be58f605c371e15141b007a6"
OWNER_KEY = "0x47e179ec197488593b187f80a00eb0da91f1b9d0b13f8733639f19c30a34926a"

DAVE, PROVIDER, MALLORY, OWNER = CAST = tuple(map(Signer, (DAVE_KEY, PROVIDER_KEY, MALLORY_KEY, OWNER_KEY)))
"""Dave pays for channels, the provider is us, Mallory is Mallory, and the owner may change the contract's terms."""

V1 = parse_address("0x1C1918C99b6DcE977392E4131C91654d8aB71e64")
V2 = parse_address("0x0C2B3aA1e80629D572b1f200e6DF3586B3946A8A")
USDC = parse_address("0x3c499c542cEF5E3811e1192ce70d8cC03d5c3359")
FEE_WALLET = parse_address("0xABC12A8285FbaCe47100891BC1eA3f2EE41BF344")
