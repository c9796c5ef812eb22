"""Members of a tar file as samples: neighbours of one key, as WebDataset writes them.

The key is the name up to the first dot behind the last slash. Only pictures, .txt and .json are
looked at; anything else, such as a pickle, is counted by its suffix and never opened.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator

from mdm_apple.data.shards.shard_file import BadShardError
from mdm_apple.data.shards.tar import Member
from mdm_apple.storage.files import is_system_file

PICTURES = ("jpg", "jpeg", "png", "webp")
MAX_SAMPLES = 1 << 18  # of a shard
MAX_SUFFIXES = 100  # that are counted apart
OTHERS = "others"

Sample = dict[str, Member]  # "picture", "txt" and "json", as far as they are there


def samples(shard: str, found: Iterable[Member], unopened: Counter[str]) -> Iterator[Sample]:
    """The samples in order. Counts in `unopened` what is not looked at, by suffix.

    Raises BadShardError for a key that comes back later, for two members of one kind in a sample,
    and for more than MAX_SAMPLES.
    """
    seen: set[int] = set()
    current, sample = "", Sample()
    for member in found:
        folder, slash, name = member.name.rpartition("/")
        if is_system_file(name):
            continue
        stem, _, suffix = name.partition(".")
        key = folder + slash + stem
        if key != current or not seen:
            if sample:
                yield sample
            current, sample = key, Sample()
            _add_key(shard, member, key, seen)
        suffix = suffix.lower()
        kind = "picture" if suffix in PICTURES else suffix
        if kind not in ("picture", "txt", "json"):
            known = suffix in unopened or len(unopened) < MAX_SUFFIXES
            unopened[suffix[:40] if known else OTHERS] += 1
            continue
        if kind in sample:
            what = "two pictures" if kind == "picture" else f"two .{kind} files"
            raise BadShardError(shard, member.at, f"the sample {key[:80]!r} has {what}")
        sample[kind] = member
    if sample:
        yield sample


def _add_key(shard: str, member: Member, key: str, seen: set[int]) -> None:
    # eight bytes instead of a name, so that a hostile shard cannot fill the memory
    mark = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest())
    if mark in seen:
        raise BadShardError(
            shard,
            member.at,
            f"the sample {key[:80]!r} comes twice, so its members must stand together",
        )
    if len(seen) >= MAX_SAMPLES:
        raise BadShardError(shard, member.at, f"more than {MAX_SAMPLES} samples are in one shard")
    seen.add(mark)
