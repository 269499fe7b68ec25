"""GooseStack: a gateway that sells and rations LLM access, with a prepaid ledger that survives a crash."""

__version__ = "0.1.0"
