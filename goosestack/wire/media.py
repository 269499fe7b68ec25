"""Upper bounds on the input tokens of images and documents, by model.

Sources: the vendors' vision guides. OpenAI's tile models: at most 8 tiles (768 by 2,048) and a base; its patch models:
a patch budget times a multiplier; Anthropic: 4,784 tokens an image on the models with the larger edge. A document
is bounded by nothing but the model's own input limit.
"""

from __future__ import annotations

from goosestack.wire import Media

_CAPS: tuple[tuple[str, int], ...] = (  # the first prefix that fits decides
    ("claude", 4_784),
    ("gpt-4o-mini", 2_833 + 8 * 5_667),
    ("gpt-4.1-mini", 9_954),
    ("gpt-4.1-nano", 15_115),
    ("gpt-4.1", 85 + 8 * 170),
    ("gpt-4o", 85 + 8 * 170),
    ("o4-mini", 10_568),
    ("o1", 75 + 8 * 150),
    ("o3", 75 + 8 * 150),
    ("gpt-5-nano", 15_115),
    ("gpt-5-mini", 9_954),
    ("gpt-5.1", 70 + 8 * 140),
    ("gpt-5.2", 7_373),
    ("gpt-5.4", 12_000),
    ("gpt-5.5", 12_000),
    ("gpt-5.6", 36_000),
    ("gpt-6", 36_000),
)
_UNKNOWN = 2_833 + 8 * 5_667
_HIGH = 3_000
_LIMITED_BY_HIGH = ("gpt-5.5", "gpt-5.6", "gpt-6")


def image_cap(model: str, *, small: bool = False) -> int:
    """The most tokens that one image can be on this model; `small` where the caller asked for less than all of it."""
    name = model.rpartition("/")[2]
    if small and name.startswith(_LIMITED_BY_HIGH):
        return _HIGH
    return next((cap for prefix, cap in _CAPS if name.startswith(prefix)), _UNKNOWN)


def bound(model: str, media: Media, max_input: int) -> int:
    """The most tokens that all media of a request can be; at most the model's own input limit where documents are."""
    if media.documents:
        return max_input
    if not media.images and not media.small_images:
        return 0
    return media.images * image_cap(model) + media.small_images * image_cap(model, small=True)


def estimate(media: Media) -> int:
    """A guess at the same, for a bill whose truth is lost: a screenshot's and a short document's worth."""
    return 1_500 * (media.images + media.small_images) + 5_000 * media.documents
