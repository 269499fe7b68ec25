"""Where a Supabase project has its tables, and what it wants to see of a key."""

from __future__ import annotations


def table(project: str, name: str) -> str:
    """The address of a table of the project at this URL."""
    return f"{project}/rest/v1/{name}"


def key_headers(key: str) -> dict[str, str]:
    """The headers that a key is sent in. The old ones are tokens, and wanted as such, too; the new ones must not be."""
    as_token = {"authorization": f"Bearer {key}"} if key.startswith("eyJ") else {}
    return {"apikey": key, **as_token}
