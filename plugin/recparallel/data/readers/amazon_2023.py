"""Amazon Reviews 2023: reviews and metadata as McAuley's lab publishes them (Hou et al., arXiv 2403.03952)."""

from typing import ClassVar

from recparallel.data.readers.amazon_2018 import Amazon2018


class Amazon2023(Amazon2018):
    """Read one category: the reviews, a JSON object a line (``user_id``, ``parent_asin``, ``rating``, ``timestamp`` in
    milliseconds), and the metadata (``parent_asin``, ``title``, ``categories``) where it is there.

    An item is a ``parent_asin``: variants of one product, of other colour or size, are one item.
    """

    name = "amazon-2023"
    files = ("*.jsonl*",)
    optional_files = ("meta_*.jsonl*",)
    source = (
        "a category's reviews (All_Beauty.jsonl.gz, say) and its metadata (meta_All_Beauty.jsonl.gz), alone in a folder, "
        "from https://amazon-reviews-2023.github.io/"
    )

    review: ClassVar[dict[str, str]] = {
        "user": "user_id",
        "item": "parent_asin",
        "timestamp": "timestamp",
        "rating": "rating",
    }
    unit = "ms"
    genres = "categories"
