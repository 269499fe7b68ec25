"""The long proofs: each attacks one promise for as long as it is given, and says how far it came.

`scripts/prove` runs them all in their short form, `scripts/prove --full` to their targets. A proof draws whatever it
draws from one seed, which is printed and which repeats it. It is refuted by the first thing that is not as promised,
and also where it met no danger: a run in which no fault was hit proves nothing.
"""
